"""Reads a published image classifier, in any known family's naming, as the weights of one of our models."""

import dataclasses
import importlib
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from attnjax import models
from attnjax.errors import UserError
from attnjax.weights import preprocessing
from attnjax.weights.files import Arrays, read_arrays, read_description
from attnjax.weights.naming import Format, Shape, check_settings, detect, from_published, published_names


@dataclasses.dataclass(frozen=True)
class Weights:
    """Weights to start from."""

    source: str
    variables: Arrays  # flat: "params/block0/norm1/scale"
    num_classes: int  # 0 without a head
    classes: tuple[str, ...] | None  # their names, if known
    image_size: tuple[int, int] | None  # (height, width) in training, if known
    resize_rule: str  # one of nn.positions.RESIZE_RULES, for tables of absolute positions
    # Fields of a config's `data` group and of its model that the weights were trained with, if known.
    image_format: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    model_fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def read(
    source: str | Path, model: Mapping[str, Any], image_shape: tuple[int, int, int], *, adopt: bool = False
) -> Weights:
    """Reads a weights file or Hugging Face folder as a model of `models.fields`, for images (H, W, C).

    The number of classes and the size of tables of positions are the file's own. UserError if the file cannot be read,
    follows no known naming, describes a different computation, or does not fit the model; with `adopt` the caller
    changes the fields of the model that the family of the weights fixes (`Weights.model_fields`), else they must agree.
    """
    where, formats = str(source), _formats_of(model["name"])
    arrays, description = read_arrays(source), read_description(source)
    fmt = detect(arrays, formats, where)
    arrays = fmt.prepare(arrays)
    num_classes = _count_classes(arrays, fmt, model)
    module = models.build(model, num_classes=num_classes)
    check_settings(fmt, module, description, where)
    if not adopt:
        _check_fields(fmt, model, image_shape[:2], where)
    shapes = variable_shapes(module, (1, *image_shape))
    names = published_names(fmt, module, shapes)
    for path, shape in shapes.items():
        if path.endswith("positions/embedding") and (table := arrays.get(names[path])) is not None:
            # Tables of absolute positions (1, N, D) or relative ones (rows, columns, heads) may be of another size.
            if path.endswith("relative_positions/embedding"):
                table = arrays[names[path]] = _as_window(table, shape, f"'{where}': {names[path]}")
            if table.ndim == 3:
                shapes[path] = (*table.shape[:2], shape[-1])
    return Weights(
        source=where,
        variables=from_published(arrays, fmt, module, shapes, where),
        num_classes=num_classes,
        classes=_class_names(description, num_classes, where),
        image_size=_image_size(description, where),
        resize_rule=fmt.resize_rule,
        image_format=preprocessing.read(source, description),
        model_fields=fmt.fields(model, None),
    )


def _check_fields(fmt, model, image_size, where):
    """Raises UserError if the family of the weights computes something else for images of this size."""
    for name, value in fmt.fields(model, image_size).items():
        if model[name] != value:
            size = "x".join(map(str, image_size))
            raise UserError(
                f"'{where}' has weights of a family ({fmt.name}) that computes with {name}={value} for images of "
                f"{size} pixels, not {name}={model[name]}: set it for this model"
            )


def _as_window(table, shape, what):
    """Returns a table of relative positions (rows * columns, heads) as (rows, columns, heads).

    It has the rows and columns of the model's, `shape`, if it is as large, else it is a square.
    """
    if table.ndim != 2:
        return table
    side = math.isqrt(len(table))
    if len(table) == shape[0] * shape[1]:
        return table.reshape(*shape[:2], -1)
    if side * side != len(table):
        raise UserError(
            f"{what} has {len(table)} rows, which are not of this model's {shape[0]}x{shape[1]}, nor a square"
        )
    return table.reshape(side, side, -1)


def variable_shapes(model: nn.Module, image_shape: tuple[int, int, int, int]) -> dict[str, Shape]:
    """Returns the shapes of a model's flat variables for images (B, H, W, C), without allocating arrays."""
    variables = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct(image_shape, jnp.float32))
    shapes = {path: struct.shape for path, struct in flatten_dict(variables, sep="/").items()}
    return {path: shape for path, shape in shapes.items() if model.num_classes or not is_head(path)}


def is_head(path: str) -> bool:
    """Whether a flat variable belongs to the head or to one of several: "params/head/bias", "params/head2/bias"."""
    return bool(re.match(r"params/head\d*/", path))


def _formats_of(name: str) -> tuple[Format, ...]:
    formats = models.lookup(name).formats
    if not formats:
        known = ", ".join(known for known, row in models.MODELS.items() if row.formats)
        raise UserError(f"no published weights are known for model '{name}'. Known: {known}")
    return importlib.import_module(f"attnjax.weights.{formats}").FORMATS


def _count_classes(arrays, fmt, model):
    any_head = models.build(model, num_classes=1)
    path = next(path for module in fmt.modules(any_head) if is_head(path := f"params/{module}/bias"))
    bias = arrays.get(published_names(fmt, any_head, [path])[path])
    return 0 if bias is None else len(bias)


def _class_names(description, num_classes, where):
    """Returns the names of the classes, if there are as many as `num_classes`."""
    names = description.get("id2label", description.get("label_names", {}))
    if isinstance(names, list):
        names = dict(enumerate(names))
    try:
        named = {int(index): str(name) for index, name in names.items()}
    except (ValueError, TypeError, AttributeError):
        raise UserError(f'\'{where}\': id2label in config.json should be like {{"0": "cat", "1": "dog"}}') from None
    return tuple(named[i] for i in range(num_classes)) if named.keys() == set(range(num_classes)) else None


def _image_size(description, where):
    """Returns the (height, width) of the images in training, if it is known."""
    timms = description.get("pretrained_cfg")
    size = timms.get("input_size") if isinstance(timms, dict) else None  # channels, height, width
    size = description.get("image_size", size[1:] if isinstance(size, list) else None)
    sides = [size, size] if isinstance(size, int) else size
    if sides is None:
        return None
    if isinstance(sides, list) and len(sides) == 2 and all(type(side) is int and side > 0 for side in sides):
        return tuple(sides)
    raise UserError(f"'{where}': config.json says image_size={size!r}; it should be one number, or [height, width]")
