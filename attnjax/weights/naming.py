"""How published files name and lay out arrays, and the conversion of their arrays to our variables and back.

A `Format` describes one family of files; it is defined in the module of its model, mostly as a table from our module
paths to the family's. Our variables are flat here: "params/block0/norm1/scale", "batch_stats/stem_norm/mean".
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from attnjax.errors import UserError
from attnjax.weights.files import Arrays

Shape = tuple[int, ...]
Settings = dict[str, tuple[str, tuple]]
# flax's parameter names -> torch's.
_TORCH_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
# Our activations -> Hugging Face's names for them, of which we write the first.
HUGGINGFACE_ACTIVATIONS = {
    "gelu": ("gelu", "gelu_python"),
    "gelu_tanh": ("gelu_pytorch_tanh", "gelu_new", "gelu_python_tanh"),
    "relu": ("relu",),
    "swish": ("swish", "silu"),
    "tanh": ("tanh",),
}


@dataclasses.dataclass(frozen=True)
class Format:
    """How one family of files names and lays out the arrays of a model."""

    name: str
    marker: str  # regular expression that matches a name in each file of the family; formats are tried in order
    modules: Callable[[Any], Mapping[str, str]]  # model -> {our module path (or parameter path): the family's}
    prepare: Callable[[Arrays], Arrays] = dict  # renames and splits arrays so that all variants of the family agree
    torch: bool = True  # torch's kernel layouts and parameter names, else flax's
    resize_rule: str = "bicubic_antialias"  # how the family resizes position tables; see nn.positions.RESIZE_RULES
    # What config.json must say for the model to compute the same: {field: (what our model has, accepted values)}.
    settings: Callable[[Any], Settings] = lambda model: {}
    described_in: str = "config.json"  # where the family's files state the settings
    # (model config, image size (H, W), or None for any) -> the fields in which the family computes otherwise than other
    # families, and that no file states.
    fields: Callable[[Mapping[str, Any], tuple[int, int] | None], dict[str, Any]] = lambda config, image_size: {}


def block_names(norms: str, attention: str, mlp: str) -> dict[str, str]:
    """Returns {our module path in an encoder block: the family's}; `attention` names query, key, value and output."""
    paths = "norm1 norm2 attention/query attention/key attention/value attention/out mlp/fc1 mlp/fc2"
    return dict(zip(paths.split(), f"{norms} {attention} {mlp}".split(), strict=True))


def within(ours: str, theirs: str, names: Mapping[str, str]) -> dict[str, str]:
    """Returns `names`, {our path: the family's} inside a module, with the module's own two paths before them."""
    return {ours + name: theirs + other for name, other in names.items()}


def detect(arrays: Arrays, formats: Iterable[Format], where: str) -> Format:
    """Returns the first format whose marker matches a name; UserError naming the file `where` if none does."""
    for candidate in formats:
        if any(re.search(candidate.marker, name) for name in arrays):
            return candidate
    known = ", ".join(candidate.name for candidate in formats)
    raise UserError(f"the arrays of '{where}' follow no known naming ({known}): {_first_three(sorted(arrays))}")


def from_published(arrays: Arrays, fmt: Format, model: nn.Module, shapes: Mapping[str, Shape], where: str) -> Arrays:
    """Returns our flat variables, of the given `shapes`, from prepared arrays; UserError listing every mismatch."""
    names = published_names(fmt, model, shapes)
    wanted = {}
    for path, shape in shapes.items():
        struct = jax.ShapeDtypeStruct(shape, np.float32)
        wanted[names[path]] = jax.eval_shape(functools.partial(_to_layout, fmt, path), struct).shape
    check_fit({name: array.shape for name, array in arrays.items()}, wanted, where)
    check_numbers(arrays, where)
    return {path: _from_layout(fmt, path, arrays[names[path]]).reshape(shape) for path, shape in shapes.items()}


def to_published(variables: Arrays, fmt: Format, model: nn.Module) -> Arrays:
    """Returns flat variables under the format's names and in its layout; the inverse of `from_published`."""
    names = published_names(fmt, model, variables)
    return {name: np.ascontiguousarray(_to_layout(fmt, path, variables[path])) for path, name in names.items()}


def published_names(fmt: Format, model: nn.Module, paths: Iterable[str]) -> dict[str, str]:
    """Returns {our flat path: the format's name}; a module that the format does not have keeps our name."""
    modules = fmt.modules(model)

    def name(path):
        _, path = path.split("/", 1)  # the collection
        if path in modules:
            return modules[path]
        module, leaf = path.rsplit("/", 1)
        theirs = modules.get(module, module)
        return f"{theirs}.{_TORCH_LEAVES.get(leaf, leaf)}" if fmt.torch else f"{theirs}/{leaf}"

    return {path: name(path) for path in paths}


def check_fit(found: Mapping[str, Shape], wanted: Mapping[str, Shape], where: str) -> None:
    """Raises UserError unless names and shapes agree: one line with up to three examples of each kind of mismatch."""
    changed = [n for n in wanted if n in found and tuple(found[n]) != tuple(wanted[n])]
    problems = {
        "missing": sorted(wanted.keys() - found.keys()),
        "unexpected": sorted(found.keys() - wanted.keys()),
        "of the wrong shape": [f"{n} {tuple(found[n])} instead of {tuple(wanted[n])}" for n in changed],
    }
    if any(problems.values()):
        listed = "; ".join(f"{len(names)} {kind}: {_first_three(names)}" for kind, names in problems.items() if names)
        raise UserError(f"'{where}' does not fit the model: {listed}")


def check_numbers(arrays: Mapping[str, np.ndarray], where: str) -> None:
    """Raises UserError unless all arrays are finite floating-point numbers."""
    for name, array in arrays.items():
        if not np.issubdtype(array.dtype, np.floating):
            raise UserError(f"'{where}': {name} has numbers of type {array.dtype}, as of quantised weights, not floats")
        if not np.isfinite(array).all():
            raise UserError(f"'{where}': {name} has {np.count_nonzero(~np.isfinite(array))} NaN or infinite numbers")


def check_settings(fmt: Format, model: nn.Module, description: Mapping[str, Any], where: str) -> None:
    """Raises UserError if the file's config.json, or its equivalent, describes a different computation from ours."""
    for field, (ours, accepted) in fmt.settings(model).items():
        value = description.get(field, accepted[0])
        if value not in accepted:
            says = f"{fmt.described_in} says {field}={value!r}"
            raise UserError(f"'{where}': {says}, but this model has {ours}")


def check_expressible(huggingface_class: str, problems: Mapping[str, bool]) -> None:
    """Raises UserError listing the `problems` that are true of a model: a transformers class cannot compute it."""
    if found := [name for name, is_true in problems.items() if is_true]:
        raise UserError(f"Hugging Face's {huggingface_class} cannot express this model: {', '.join(found)}")


def name_bare_model(arrays: Arrays, prefix: str) -> Arrays:
    """Renames the arrays of a bare transformers model ("vit.") to their names in its ForImageClassification class."""
    inside = (prefix, "classifier.")
    return {name if name.startswith(inside) else prefix + name: array for name, array in arrays.items()}


def split_qkv(arrays: Arrays) -> Arrays:
    """Splits each fused projection (rows q, k, v) into three arrays, with "query", "key" and "value" for "qkv"."""
    result: Arrays = {}
    for name, array in arrays.items():
        if "qkv" in name:
            parts = zip(("query", "key", "value"), np.array_split(array, 3), strict=True)
            result |= {name.replace("qkv", part): rows for part, rows in parts}
        else:
            result[name] = array
    return result


def _first_three(names):
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _to_layout(fmt, path, array):
    if not fmt.torch:
        return array
    if path.endswith("attention/out/kernel"):
        array = array.reshape(-1, array.shape[-1])  # (heads, d, D): its first two axes are inputs
    if path.endswith("kernel"):
        return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.reshape(array.shape[0], -1).T
    return array.reshape(-1) if path.endswith("bias") else array


def _from_layout(fmt, path, array):
    if not (fmt.torch and path.endswith("kernel")):
        return array
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
