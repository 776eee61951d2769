"""The registry of models: `fields` for a config, `build` for a module.

A new model is one file with a linen module of plain fields, and one row here.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from attnjax.errors import UserError, nearest
from attnjax.models.captioner import Captioner
from attnjax.models.cnn import RESNET_SIZES, LeNet, ResNet
from attnjax.models.crossvit import CROSSVIT_SIZES, CrossViT
from attnjax.models.mlp import MLP
from attnjax.models.rnn import RNN
from attnjax.models.swin import SWIN_SIZES, Swin
from attnjax.models.transformer import TRANSFORMER_SIZES, Transformer
from attnjax.models.vit import VIT_SIZES, ViT

MODELS: dict[str, tuple[type[nn.Module], Mapping[str, dict[str, Any]]]] = {
    "mlp": (MLP, {}),
    "lenet": (LeNet, {}),
    "resnet": (ResNet, RESNET_SIZES),
    "vit": (ViT, VIT_SIZES),
    "swin": (Swin, SWIN_SIZES),
    "crossvit": (CrossViT, CROSSVIT_SIZES),
    "rnn": (RNN, {}),
    "transformer": (Transformer, TRANSFORMER_SIZES),
    "captioner": (Captioner, {}),
}

# Fields that do not come from a config's model, but from its data and its optimizer.
DATA_FIELDS = ("num_classes", "source_vocabulary", "target_vocabulary", "freeze_encoder")


def _lookup(name):
    if name not in MODELS:
        raise UserError(f"unknown model '{name}', {nearest(name, MODELS)}")
    return MODELS[name]


def _fields(module) -> dict[str, dataclasses.Field]:
    left_out = ("parent", "name", *DATA_FIELDS)
    return {f.name: f for f in dataclasses.fields(module) if f.init and f.name not in left_out}


def fields(name: str, size: str | None = None, **changes) -> dict[str, Any]:
    """Returns `name` and every field of a model for a config: defaults, then the named size's, then `changes`.

    The DATA_FIELDS are left out. UserError for an unknown model, size or field.
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


def build(config: Mapping[str, Any], **sizes: int) -> nn.Module:
    """Returns the linen module that `config` (of `fields`) describes.

    `sizes` are the DATA_FIELDS of its kind of model: `num_classes`, or `source_vocabulary` and `target_vocabulary`.
    UserError if the model is of another kind.
    """
    config = dict(config)
    if "name" not in config:
        raise UserError(f"the config names no model: set config.model by models.fields. Known: {', '.join(MODELS)}")
    module, _ = _lookup(config["name"])

    def takes(module):
        return sizes.keys() <= {f.name for f in dataclasses.fields(module)}

    if not takes(module):
        able = [name for name, (other, _) in MODELS.items() if takes(other)]
        raise UserError(f"model '{config['name']}' is not for this task. Known: {', '.join(able)}")
    return module(**sizes, **{k: v for k, v in fields(**config).items() if k != "name"})


def build_captioner(config: Mapping[str, Any], *, freeze_encoder: bool = False, **sizes: int) -> Captioner:
    """Returns the captioner whose `encoder` and `text` are configs of `fields`; `sizes` are the text's vocabularies."""
    parts = {part: dict(config[part]) for part in ("encoder", "text")}
    if parts["text"].get("name") != "transformer":
        raise UserError(f"model.text should be a transformer, not '{parts['text'].get('name')}'")
    encoder = build(parts["encoder"], num_classes=0)
    return Captioner(encoder=encoder, text=build(parts["text"], **sizes), freeze_encoder=freeze_encoder)

