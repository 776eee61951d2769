"""Augmentation of one image, uint8 `(H, W, C)` with C = 1 or 3: resized crop, color jitter, RandAugment (Cubuk 2020).

Every random draw comes from the generator that is passed in, so that the result depends on nothing else.
"""

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from attnjax.data.images.augment import Augmentation
from attnjax.data.images.decode import from_pil, to_pil
from attnjax.data.images.format import INTERPOLATIONS, ImageFormat


def random_resized_crop(
    image: np.ndarray, rng: np.random.Generator, augmentation: Augmentation, image_format: ImageFormat
) -> np.ndarray:
    """Crops a random share `scale` of the area with a random aspect `ratio` (width / height), and resizes the crop."""
    top, left, height, width = _resized_crop_box(image, rng, augmentation)
    return image_format.resized(image[top : top + height, left : left + width], image_format.image_size)


def _resized_crop_box(
    image: np.ndarray, rng: np.random.Generator, augmentation: Augmentation
) -> tuple[int, int, int, int]:
    """Draws top, left, height and width."""
    (height, width), scale, ratio = image.shape[:2], augmentation.scale, augmentation.ratio
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(*np.log(ratio)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    # The fallback of torchvision: the largest centred box with an allowed aspect.
    aspect = min(max(width / height, ratio[0]), ratio[1])
    w, h = min(width, round(height * aspect)), min(height, round(width / aspect))
    return (height - h) // 2, (width - w) // 2, h, w


def color_jitter(image: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Changes brightness, contrast and saturation, in random order, each by a factor in 1 ± `strength`."""
    picture = to_pil(image)
    for index in rng.permutation(3):
        enhance = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[index]
        picture = enhance(picture).enhance(rng.uniform(max(0.0, 1 - strength), 1 + strength))
    return from_pil(picture)


def randaugment(
    image: np.ndarray, rng: np.random.Generator, augmentation: Augmentation, image_format: ImageFormat
) -> np.ndarray:
    """Applies RandAugment (Cubuk 2020) in timm's "increasing" form, as DeiT does (`rand-m9-mstd0.5-inc1`).

    Draws `randaugment_layers` operations with replacement and applies each with probability 1/2, at a magnitude from
    N(`randaugment_magnitude`, `randaugment_std`) clipped to 0..10. Pixels from outside the image get the mean colour.
    """
    picture = to_pil(image)
    names = tuple(OPERATIONS)
    fill = tuple(round(255 * value) for value in image_format.mean)
    for index in rng.integers(len(names), size=augmentation.randaugment_layers):
        if rng.random() < 0.5:
            continue
        magnitude = rng.normal(augmentation.randaugment_magnitude, augmentation.randaugment_std)
        level = min(max(magnitude, 0.0), 10.0) / 10
        picture = apply_operation(picture, names[index], level, rng, fill, image_format.interpolation)
    return from_pil(picture)


def apply_operation(
    picture: Image.Image,
    name: str,
    level: float,
    rng: np.random.Generator,
    fill: tuple[int, ...] = (128,),
    interpolation: str = "bicubic",
) -> Image.Image:
    """Applies one of `OPERATIONS` at `level` 0..1 to an image of mode L or RGB; some draw a sign of the level."""
    operation = OPERATIONS[name]
    if name not in _SIGNED:
        return operation(picture, level)
    signed = -level if rng.random() < 0.5 else level
    if name not in _GEOMETRIC:
        return operation(picture, signed)
    color = fill[0] if picture.mode == "L" else tuple(fill) * (3 // len(fill))
    return operation(picture, signed, {"resample": INTERPOLATIONS[interpolation], "fillcolor": color})


def _affine(matrix: Callable) -> Callable:
    return lambda picture, level, options: picture.transform(
        picture.size, Image.Transform.AFFINE, matrix(picture, level), **options
    )


def _enhance(kind: type) -> Callable:
    return lambda picture, level: kind(picture).enhance(max(0.1, 1 + 0.9 * level))


def _posterize(picture: Image.Image, level: float) -> Image.Image:
    # At the highest level no bit is kept, as in timm; Pillow's own posterize refuses that.
    kept = 256 - 2 ** (4 + int(4 * level))
    return picture.point([value & kept for value in range(256)] * len(picture.getbands()))


def _solarize_add(picture: Image.Image, level: float) -> Image.Image:
    added = min(128, int(level * 110))
    table = [min(255, value + added) if value < 128 else value for value in range(256)]
    return picture.point(table * len(picture.getbands()))


OPERATIONS: dict[str, Callable] = {
    "auto_contrast": lambda picture, level: ImageOps.autocontrast(picture),
    "equalize": lambda picture, level: ImageOps.equalize(picture),
    "invert": lambda picture, level: ImageOps.invert(picture),
    "rotate": lambda picture, level, options: picture.rotate(30 * level, **options),
    "posterize": _posterize,
    "solarize": lambda picture, level: ImageOps.solarize(picture, 256 - min(256, int(256 * level))),
    "solarize_add": _solarize_add,
    "color": _enhance(ImageEnhance.Color),
    "contrast": _enhance(ImageEnhance.Contrast),
    "brightness": _enhance(ImageEnhance.Brightness),
    "sharpness": _enhance(ImageEnhance.Sharpness),
    "shear_x": _affine(lambda picture, level: (1, 0.3 * level, 0, 0, 1, 0)),
    "shear_y": _affine(lambda picture, level: (1, 0, 0, 0.3 * level, 1, 0)),
    "translate_x": _affine(lambda picture, level: (1, 0, 0.45 * level * picture.width, 0, 1, 0)),
    "translate_y": _affine(lambda picture, level: (1, 0, 0, 0, 1, 0.45 * level * picture.height)),
}
_GEOMETRIC = frozenset(["rotate", "shear_x", "shear_y", "translate_x", "translate_y"])
_SIGNED = _GEOMETRIC | {"color", "contrast", "brightness", "sharpness"}
