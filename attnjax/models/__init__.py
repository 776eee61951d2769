"""The registry of models: `fields` for a config, `build` for a module.

A new model is one file with a linen module of plain fields, and one row here.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from attnjax.errors import UserError, nearest
from attnjax.models.cnn import RESNET_SIZES, LeNet, ResNet
from attnjax.models.mlp import MLP
from attnjax.models.vit import VIT_SIZES, ViT

MODELS: dict[str, tuple[type[nn.Module], Mapping[str, dict[str, Any]]]] = {
    "mlp": (MLP, {}),
    "lenet": (LeNet, {}),
    "resnet": (ResNet, RESNET_SIZES),
    "vit": (ViT, VIT_SIZES),
}


def _lookup(name):
    if name not in MODELS:
        raise UserError(f"unknown model '{name}', {nearest(name, MODELS)}")
    return MODELS[name]


def _fields(module) -> dict[str, dataclasses.Field]:
    return {f.name: f for f in dataclasses.fields(module) if f.init and f.name not in ("parent", "name", "num_classes")}


def fields(name: str, size: str | None = None, **changes) -> dict[str, Any]:
    """Returns `name` and every field of a model for a config: defaults, then the named size's, then `changes`.

    `num_classes` is left out: it comes from the data. UserError for an unknown model, size or field.
    """
    module, sizes = _lookup(name)
    if size is not None and size not in sizes:
        raise UserError(f"unknown size '{size}' of {name}, {nearest(size, sizes)}")
    known = _fields(module)
    defaults = {k: f.default for k, f in known.items() if f.default is not dataclasses.MISSING}
    chosen = {**defaults, **(sizes[size] if size else {}), **changes}
    for key in chosen:
        if key not in known:
            raise UserError(f"{name} has no field '{key}', {nearest(key, known)}")
    if missing := sorted(known.keys() - chosen.keys()):
        raise UserError(f"{name} needs {', '.join(missing)}, or a size: {', '.join(sizes)}")
    return {"name": name, **chosen}


def build(config: Mapping[str, Any], num_classes: int) -> nn.Module:
    """Returns the linen module that `config` (of `fields`) describes, with an output for each of `num_classes`."""
    config = dict(config)
    module, _ = _lookup(config["name"])
    return module(num_classes=num_classes, **{k: v for k, v in fields(**config).items() if k != "name"})
