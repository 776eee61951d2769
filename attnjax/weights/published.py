"""Reading a published checkpoint as weights of one of our models, whatever family's file it is, and writing ours."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from attnjax import models
from attnjax.errors import UserError
from attnjax.weights import crossvit, resnet, swin, transformer, vit
from attnjax.weights.files import Arrays, read_arrays, read_description
from attnjax.weights.huggingface import save_tokenizer
from attnjax.weights.naming import Shape, check_settings, detect, from_published, published_names

FORMATS = {"vit": vit.FORMATS, "resnet": resnet.FORMATS, "swin": swin.FORMATS, "crossvit": crossvit.FORMATS}
_HEAD = re.compile(r"^params/head\d*/")


@dataclasses.dataclass(frozen=True)
class Weights:
    """Weights to start from, as they were trained.

    variables: flat ("params/block0/norm1/scale"). num_classes: 0 without a head. classes: names, where known.
    image_size: (height, width) they were trained at, where known.
    """

    source: str
    variables: Arrays
    num_classes: int
    classes: tuple[str, ...] | None
    image_size: tuple[int, int] | None
    resize_rule: str


def read(path: str | Path, config: ConfigDict) -> Weights:
    """Reads a weights file as the config's model; the number of classes and the image size are the file's own.

    UserError if the file cannot be read, is of no known naming, or does not fit the model.
    """
    name = config.model.name
    if name not in FORMATS:
        raise UserError(f"no published weights are known for model '{name}'. Known: {', '.join(FORMATS)}")
    arrays, description = read_arrays(path), read_description(path)
    fmt = detect(arrays, FORMATS[name], str(path))
    arrays = fmt.prepare(arrays)
    num_classes = _count_classes(arrays, fmt, config)
    model = models.build(config.model, num_classes=num_classes)
    check_settings(fmt, model, description, str(path))
    shapes = variable_shapes(model, (1, *config.data.image_size, config.data.channels))
    names = published_names(fmt, model, shapes)
    for positions in filter(is_position_table, shapes):
        if (table := arrays.get(names[positions])) is not None and table.ndim == 3:
            shapes[positions] = (*table.shape[:2], shapes[positions][-1])  # the grid may be another
    return Weights(
        source=str(path),
        variables=from_published(arrays, fmt, model, shapes, str(path)),
        num_classes=num_classes,
        classes=_class_names(description, num_classes),
        image_size=_image_size(description),
        resize_rule=fmt.resize_rule,
    )


def to_huggingface(folder: str | Path, workload: Any, params: dict) -> str:
    """Writes the model of a run's `workload` with `params` as a folder of Hugging Face's; returns what reads it.

    UserError if there is nothing that computes this model, or the folder holds weights already.
    """
    kind = (workload.config.task, workload.config.model.name)
    if kind not in WRITERS:
        known = ", ".join(map(" by ".join, WRITERS))
        raise UserError(f"Hugging Face's formats are not written for {' by '.join(kind)}, only for: {known}")
    write, readers = WRITERS[kind]
    write(folder, workload, params)
    return readers


def _classifier(write: Callable) -> Callable:
    """Returns a writer of a classification workload from that of its model."""

    def write_workload(folder, workload, params):
        data = workload.config.data
        write(folder, workload.task.model, params, workload.classes, tuple(data.image_size), data.channels)

    return write_workload


def _translator(folder, workload, params):
    transformer.to_huggingface(folder, workload.task.model, params)
    save_tokenizer(folder, workload.vocabulary, tuple(workload.config.data.languages), workload.task.model.max_length)


# Task and model -> how to write a run of them for Hugging Face, and its classes that then read it.
WRITERS = {
    ("classification", "vit"): (_classifier(vit.to_huggingface), "ViTForImageClassification"),
    ("classification", "swin"): (_classifier(swin.to_huggingface), "SwinForImageClassification"),
    ("translation", "transformer"): (_translator, "MarianMTModel and MarianTokenizer"),
}


def is_position_table(path: str) -> bool:
    """Says whether a flat variable is a table of positions, absolute or relative, (., ., width or heads)."""
    return path.endswith("positions/embedding")


def is_head(path: str) -> bool:
    """Says whether a flat variable is of the head, or of one of several: "params/head/bias", "params/head2/bias"."""
    return bool(_HEAD.match(path))


def _count_classes(arrays, fmt, config):
    any_head = models.build(config.model, num_classes=1)
    path = next(path for module in fmt.modules(any_head) if is_head(path := f"params/{module}/bias"))
    bias = arrays.get(published_names(fmt, any_head, [path])[path])
    return 0 if bias is None else len(bias)


def variable_shapes(model: nn.Module, image: tuple[int, int, int, int]) -> dict[str, Shape]:
    """Returns the shapes of a model's flat variables for images (B, H, W, C); makes no arrays."""
    variables = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct(image, jnp.float32))
    shapes = {path: struct.shape for path, struct in flatten_dict(variables, sep="/").items()}
    return {path: shape for path, shape in shapes.items() if model.num_classes or not is_head(path)}


def _class_names(description, num_classes):
    names = description.get("id2label", {})
    return tuple(names[key] for key in sorted(names, key=int)) if len(names) == num_classes else None


def _image_size(description):
    size = description.get("image_size")
    return (size, size) if isinstance(size, int) else tuple(size) if size else None
