"""How images become a published model's inputs: Hugging Face's preprocessor_config.json, and timm's pretrained_cfg.

Both are translated to and from fields of a config's `data` group: image_size, mean, std, resize, crop_fraction and
interpolation, which `attnjax.data.images.format` explains.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from attnjax.data.images.format import INTERPOLATIONS, ImageFormat
from attnjax.errors import UserError
from attnjax.weights.files import read_json, weights_file

FILE = "preprocessor_config.json"
# Processors that read a size of one number as the shorter side; the others as both sides.
_BY_SHORTER_SIDE = ("ConvNext", "CLIP", "Bit")
_CONVNEXT_CROPS_BELOW = 384  # pixels; larger images are stretched


def read(path: str | Path, description: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of a config's `data` group that the files beside the weights state, or {}.

    `description` is the content of config.json. UserError if our images cannot be made like that.
    """
    settings = read_json(path, FILE)
    where, translate = weights_file(path).with_name(FILE), _from_huggingface
    if not settings and (settings := description.get("pretrained_cfg", {})):
        where, translate = weights_file(path).with_name("config.json"), _from_timm
    try:
        fields = translate(settings)
        ImageFormat(**{"image_size": (1, 1)} | fields)
    except UserError as error:
        raise UserError(f"'{where}': {error}") from None
    except (TypeError, ValueError, KeyError, AttributeError, ZeroDivisionError) as error:
        raise UserError(f"'{where}' is not understood: {type(error).__name__}: {error}") from None
    return fields


def to_huggingface(image_format: ImageFormat) -> tuple[str, dict[str, Any]]:
    """Returns the name of transformers' processor that makes the same images for evaluation, and its settings.

    The name is "" where there is none: with resize="crop" for images that are not square.
    """
    (height, width), stretch = image_format.image_size, image_format.resize == "stretch"
    if not stretch and height != width:
        return "", {}
    larger = [int(side / image_format.crop_fraction + 1e-6) for side in (height, width)]
    crops = image_format.crop_fraction < 1 or not stretch
    name = "CLIPImageProcessor" if not stretch else "DeiTImageProcessor" if crops else "ViTImageProcessor"
    return name, {
        "image_processor_type": name,
        "do_resize": True,
        "size": dict(zip(("height", "width"), larger, strict=True)) if stretch else {"shortest_edge": larger[0]},
        "resample": int(INTERPOLATIONS[image_format.interpolation]),
        "do_center_crop": crops,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": _per_channel(image_format.mean, image_format.channels),
        "image_std": _per_channel(image_format.std, image_format.channels),
    }


def _per_channel(values, channels):
    return list(values) * (channels // len(values))


def _from_huggingface(settings):
    fields: dict[str, Any] = {}
    if settings.get("do_normalize") is False:
        fields |= {"mean": (0.0,), "std": (1.0,)}
    elif "image_mean" in settings:
        fields |= {"mean": _floats(settings["image_mean"]), "std": _floats(settings["image_std"])}
    scale = 255 * settings.get("rescale_factor", 1 / 255) if settings.get("do_rescale", True) else 255.0
    fields |= {name: tuple(value / scale for value in fields[name]) for name in ("mean", "std") if name in fields}
    if settings.get("do_resize", True) and "size" in settings:
        fields |= _resizing(settings) | {"interpolation": _interpolation(settings.get("resample", 2))}
    return fields


def _resizing(settings):
    """Returns resize, image_size and crop_fraction, as transformers' processor of these settings computes them."""
    named = settings.get("image_processor_type") or settings.get("feature_extractor_type") or ""
    kind = re.sub("(ImageProcessor|FeatureExtractor).*", "", named)
    size, crops = settings["size"], settings.get("do_center_crop", False)
    by_shorter_side = kind in _BY_SHORTER_SIDE if isinstance(size, int) else "shortest_edge" in size
    resized = _sides(size)
    if kind == "ConvNext":
        crops = resized[0] < _CONVNEXT_CROPS_BELOW
        fraction = settings.get("crop_pct", 224 / 256) if crops else 1.0
        return {"resize": "crop" if crops else "stretch", "image_size": resized, "crop_fraction": fraction}
    shown = _sides(settings["crop_size"]) if crops else resized
    if shown[0] * resized[1] != shown[1] * resized[0] or (by_shorter_side and not crops):
        raise UserError(f"size={size} with do_center_crop={crops} is not a resizing that data.resize knows")
    resize = "crop" if by_shorter_side else "stretch"
    return {"resize": resize, "image_size": shown, "crop_fraction": shown[0] / resized[0]}


def _sides(size):
    """Returns the (height, width) of a size, which may be one number for both sides or for the shorter one."""
    if isinstance(size, int):
        return size, size
    return (size["shortest_edge"],) * 2 if "shortest_edge" in size else (size["height"], size["width"])


def _from_timm(settings):
    fields: dict[str, Any] = {name: _floats(settings[name]) for name in ("mean", "std") if name in settings}
    if "input_size" in settings:
        fields["image_size"] = tuple(settings["input_size"][1:])
    if "interpolation" in settings:
        fields["interpolation"] = _interpolation(settings["interpolation"])
    if "crop_pct" in settings:
        modes = {"center": "crop", "squash": "stretch"}
        if (mode := settings.get("crop_mode", "center")) not in modes:
            raise UserError(f"crop_mode={mode} is not a resizing that data.resize knows")
        fields |= {"crop_fraction": float(settings["crop_pct"]), "resize": modes[mode]}
    return fields


def _interpolation(value):
    """Returns the name of Pillow's filter, given by number or name."""
    name = Image.Resampling(value).name.lower() if isinstance(value, int) else value
    if name not in INTERPOLATIONS:
        raise UserError(f"interpolation {name} is not one of {', '.join(INTERPOLATIONS)}")
    return name


def _floats(values):
    return tuple(float(value) for value in (values if isinstance(values, list) else [values]))
