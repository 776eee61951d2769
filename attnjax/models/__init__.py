"""The registry of models: `fields` returns a model for a config, `build` the linen module of a config.

A new model is one file with a linen module whose fields are plain values, and one row here. Without a row, the name
"FILE.py:NAME" stands for a module class, or a row (`Model`), called NAME in a Python file.
"""

import dataclasses
import functools
import importlib.util
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import flax.linen as nn

from attnjax.errors import UserError, nearest
from attnjax.models import cnn, crossvit, mlp, rnn, swin, transformer, vit
from attnjax.models.captioner import Captioner
from attnjax.nn.partition import ATTENTION, CONVOLUTION, DENSE, RECURRENT, Rules
from attnjax.nn.windows import Pair


@dataclasses.dataclass(frozen=True)
class Model:
    """A row of the registry.

    module: a linen module whose fields are numbers, strings, None or tuples of them.
    sizes: name -> fields, as published.
    rules: sharding rules by parameter path; None for a general rule.
    grids: (image size, config) -> path of each table of absolute positions -> its grid, for resizing; UserError if the
      image does not fit. None for a model without such tables.
    formats: the module of attnjax/weights/ that knows the published weights; "" if there are none.
    """

    module: type[nn.Module]
    sizes: Mapping[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    rules: Rules | None = None
    grids: Callable[[Pair, Mapping[str, Any]], dict[str, Pair]] | None = None
    formats: str = ""


MODELS: dict[str, Model] = {
    "mlp": Model(mlp.MLP, rules=DENSE),
    "lenet": Model(cnn.LeNet, rules=CONVOLUTION),
    "resnet": Model(cnn.ResNet, cnn.RESNET_SIZES, CONVOLUTION, formats="resnet"),
    "vit": Model(vit.ViT, vit.VIT_SIZES, ATTENTION, vit.position_grids, "vit"),
    "swin": Model(swin.Swin, swin.SWIN_SIZES, ATTENTION, swin.position_grids, "swin"),
    "crossvit": Model(crossvit.CrossViT, crossvit.CROSSVIT_SIZES, ATTENTION, crossvit.position_grids, "crossvit"),
    "rnn": Model(rnn.RNN, rules=RECURRENT),
    "transformer": Model(transformer.Transformer, transformer.TRANSFORMER_SIZES, ATTENTION),
    "captioner": Model(Captioner, rules=ATTENTION + CONVOLUTION),  # of text and encoder, whose paths do not collide
}

# Fields that come from a config's data, not from its model.
DATA_FIELDS = ("num_classes", "source_vocabulary", "target_vocabulary")


def lookup(name: str) -> Model:
    """Returns the row of a model of MODELS, or of "FILE.py:NAME"; UserError if there is none."""
    path, _, attribute = name.rpartition(":")
    if path.endswith(".py"):
        return _from_file(str(Path(path).resolve()), attribute)
    if name not in MODELS:
        raise UserError(f"unknown model '{name}', {nearest(name, MODELS)}, or FILE.py:NAME")
    return MODELS[name]


@functools.cache
def _from_file(path, attribute):
    found = getattr(_load(path), attribute, None)
    row = found if isinstance(found, Model) else Model(found)
    if not (isinstance(row.module, type) and issubclass(row.module, nn.Module)):
        wrong = "has no" if found is None else "is not a linen module:"
        raise UserError(f"'{path}' {wrong} {attribute}; a model is a subclass of flax.linen.Module, or a models.Model")
    for name, field in _fields(row.module).items():
        plain = field.default is dataclasses.MISSING or _is_plain(field.default)
        if field.default_factory is not dataclasses.MISSING or not plain:
            raise UserError(f"{attribute} of '{path}' has a default of '{name}' that is not a number, string or tuple")
    return row


@functools.cache
def _load(path):
    if not Path(path).is_file():
        raise UserError(f"no model file '{path}'")
    spec = importlib.util.spec_from_file_location(path, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path] = module  # where dataclasses look up the annotations of a class
    spec.loader.exec_module(module)
    return module


def _is_plain(value):
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _fields(module) -> dict[str, dataclasses.Field]:
    left_out = ("parent", "name", "dtype", *DATA_FIELDS)
    return {f.name: f for f in dataclasses.fields(module) if f.init and f.name not in left_out}


def fields(name: str, size: str | None = None, **changes) -> dict[str, Any]:
    """Returns `name` and every field of a model for a config: defaults, then the named size's, then `changes`.

    DATA_FIELDS and `dtype` are left out; a file's path becomes absolute. UserError for an unknown model, size or field.
    """
    row = lookup(name)
    if size is not None and size not in row.sizes:
        raise UserError(f"unknown size '{size}' of {name}, {nearest(size, row.sizes)}")
    known = _fields(row.module)
    defaults = {k: f.default for k, f in known.items() if f.default is not dataclasses.MISSING}
    chosen = {**defaults, **(row.sizes[size] if size else {}), **changes}
    for key in chosen:
        if key not in known:
            raise UserError(f"{name} has no field '{key}', {nearest(key, known)}")
    if missing := sorted(known.keys() - chosen.keys()):
        sizes = f", or a size: {', '.join(row.sizes)}" if row.sizes else ""
        raise UserError(f"{name} needs {', '.join(missing)}{sizes}")
    path, _, attribute = name.rpartition(":")
    return {"name": f"{Path(path).resolve()}:{attribute}" if path else name, **chosen}


def check_image_size(config: Mapping[str, Any], image_size: Pair) -> None:
    """Raises UserError if the config's model needs images of whole patches and this size has not."""
    if grids := lookup(config["name"]).grids:
        grids(image_size, config)


def build(config: Mapping[str, Any], *, dtype: str = "float32", **sizes: int) -> nn.Module:
    """Returns the linen module of a config made by `fields`.

    `dtype` is that of its products and activations; a module without such a field computes as it is written. `sizes`
    are the DATA_FIELDS of its task: `num_classes`, or `source_vocabulary` and `target_vocabulary`. UserError if the
    model does not have them.
    """
    if "name" not in config:
        raise UserError(f"the config names no model: set config.model by models.fields. Known: {', '.join(MODELS)}")
    module = lookup(config["name"]).module
    if not _takes(module, sizes):
        able = [name for name, row in MODELS.items() if _takes(row.module, sizes)]
        raise UserError(f"model '{config['name']}' is not for this task. Known: {', '.join(able)}")
    chosen = {k: v for k, v in fields(**config).items() if k != "name"}
    return module(**sizes, **chosen, **({"dtype": dtype} if _takes(module, {"dtype"}) else {}))


def _takes(module, names):
    return set(names) <= {field.name for field in dataclasses.fields(module)}


def build_captioner(config: Mapping[str, Any], *, dtype: str = "float32", **sizes: int) -> Captioner:
    """Returns the captioner whose `encoder` and `text` are configs of `fields`; `sizes` are the text's vocabularies."""
    encoder = build(config["encoder"], num_classes=0, dtype=dtype)
    return Captioner(encoder=encoder, text=cast(transformer.Transformer, build(config["text"], dtype=dtype, **sizes)))
