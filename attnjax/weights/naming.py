"""How published files name and lay out arrays: from their names to our variables and back.

A family of files is one `Format`, in the file of its model: mostly a table from our module paths to theirs.
Variables are flat here: "params/block0/norm1/scale", "batch_stats/stem_norm/mean".
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from attnjax.errors import UserError
from attnjax.weights.files import Arrays

Shape = tuple[int, ...]
# Names torch gives to what flax calls so.
_TORCH_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
# Activations that Hugging Face calls by several names; the first is what we write.
HUGGINGFACE_ACTIVATIONS = {
    "gelu": ("gelu", "gelu_python"),
    "gelu_tanh": ("gelu_pytorch_tanh", "gelu_new", "gelu_python_tanh"),
    "relu": ("relu",),
    "swish": ("swish", "silu"),
    "tanh": ("tanh",),
}


def same_settings(model: nn.Module) -> dict[str, tuple[str, tuple]]:
    """The `settings` of a format that has no description."""
    return {}


@dataclasses.dataclass(frozen=True)
class Format:
    """How one family of files names and lays out the arrays of a model."""

    name: str
    marker: str  # a regular expression: every such file has a name that matches, no file of another format has
    modules: Callable[[nn.Module], Mapping[str, str]]  # our module path (or an array's) -> theirs
    prepare: Callable[[Arrays], Arrays] = dict  # brings the variants of the family into one
    torch: bool = True  # kernels as torch lays them out; else as flax does
    resize_rule: str = "bicubic_antialias"  # by which the family resizes position tables
    # What config.json must say for the model to compute the same: field -> (what the model has, accepted values).
    settings: Callable[[nn.Module], dict[str, tuple[str, tuple]]] = same_settings
    described_in: str = "config.json"  # where the family says such things


def detect(arrays: Arrays, formats: Iterable[Format], where: str) -> Format:
    """Returns the format whose marker is among the names; UserError naming the file `where` if none is."""
    for candidate in formats:
        if any(re.search(candidate.marker, name) for name in arrays):
            return candidate
    known = ", ".join(candidate.name for candidate in formats)
    raise UserError(f"'{where}' is named as none of: {known}; its arrays: {_some(sorted(arrays))}")


def from_published(arrays: Arrays, fmt: Format, model: nn.Module, shapes: Mapping[str, Shape], where: str) -> Arrays:
    """Returns our flat variables, of `shapes`, from prepared arrays; UserError listing all that does not fit."""
    names = published_names(fmt, model, shapes)
    wanted = {names[path]: _published_shape(fmt, path, shape) for path, shape in shapes.items()}
    check_fit({name: array.shape for name, array in arrays.items()}, wanted, where)
    return {path: _from_layout(fmt, path, arrays[names[path]]).reshape(shape) for path, shape in shapes.items()}


def to_published(variables: Arrays, fmt: Format, model: nn.Module) -> Arrays:
    """Returns arrays by the format's names and in its layout; the inverse of `from_published`."""
    names = published_names(fmt, model, variables)
    return {name: np.ascontiguousarray(_to_layout(fmt, path, variables[path])) for path, name in names.items()}


def published_names(fmt: Format, model: nn.Module, paths: Iterable[str]) -> dict[str, str]:
    """Returns our flat path -> the format's name; where the format has no such module, our own."""
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
    """Raises UserError unless `found` has the names and shapes `wanted`; one line with up to three of each kind."""
    changed = [n for n in wanted if n in found and tuple(found[n]) != tuple(wanted[n])]
    problems = {
        "missing": sorted(wanted.keys() - found.keys()),
        "left over": sorted(found.keys() - wanted.keys()),
        "of another shape": [f"{n} {tuple(found[n])} for {tuple(wanted[n])}" for n in changed],
    }
    if any(problems.values()):
        said = "; ".join(f"{len(names)} {kind}: {_some(names)}" for kind, names in problems.items() if names)
        raise UserError(f"'{where}' does not fit the model: {said}")


def check_settings(fmt: Format, model: nn.Module, description: Mapping[str, Any], where: str) -> None:
    """Raises UserError if the file's config.json, or what it has for one, describes another computation than ours."""
    for field, (ours, accepted) in fmt.settings(model).items():
        value = description.get(field, accepted[0])
        if value not in accepted:
            raise UserError(
                f"'{where}': {fmt.described_in} says {field}={value!r}, but this model has {ours}: make them agree"
            )


def _some(names):
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _to_layout(fmt, path, array):
    if not fmt.torch:
        return array
    if path.endswith("attention/out/kernel"):
        array = array.reshape(-1, array.shape[-1])  # (heads, d, D): two axes go in
    if path.endswith("kernel"):
        return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.reshape(array.shape[0], -1).T
    return array.reshape(-1) if path.endswith("bias") else array


def _published_shape(fmt, path, shape):
    struct = jax.ShapeDtypeStruct(shape, np.float32)
    return jax.eval_shape(lambda array: _to_layout(fmt, path, array), struct).shape


def _from_layout(fmt, path, array):
    if not (fmt.torch and path.endswith("kernel")):
        return array
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
