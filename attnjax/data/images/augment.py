"""Image augmentation in NumPy and Pillow, with every random draw from an explicit generator.

Functions over one image take uint8 `(H, W, C)` with C = 1 or 3 and its own generator. Functions over a batch take
`(B, H, W, C)` and what was drawn for its rows by a `draw_*` function: so the rows of a batch can be shared out over
processes and still be the same rows.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image, ImageEnhance, ImageOps

from attnjax.errors import UserError, check_choice, nearest

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
RESIZES = ("stretch", "crop")
CROPS = ("none", "pad", "resized")
ERASE_FILLS = ("noise", "zero")


@dataclass(frozen=True)
class Augmentation:
    """What is done to training images, in this order; everything is off by default.

    Attributes:
        crop: `pad` (zero-pad by `pad` pixels, crop at random), `resized` (random area in `scale` of the image and
            aspect in `ratio`, resized; Szegedy 2015), or `none`.
        flip: mirror left to right with probability 1/2.
        color_jitter: brightness, contrast and saturation each by a factor in 1 -+ this.
        randaugment_layers, randaugment_magnitude, randaugment_std: RandAugment (Cubuk 2020) as timm and DeiT do it.
        erase: probability of random erasing (Zhong 2017), filled with normal `noise` or with `zero` (the mean).
        mixup, cutmix: alpha of Beta(alpha, alpha) for mixup (Zhang 2018) and CutMix (Yun 2019); 0 is off.
        mix_switch: probability to take CutMix where both are on.
        mix_probability: probability that a pair of images is mixed at all.
        repeats: how often each image is in a batch, differently augmented (Hoffer 2020).

    Raises:
        UserError: an unknown field or choice, or a value out of range.
    """

    crop: str = "none"
    pad: int = 4
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = False
    color_jitter: float = 0.0
    randaugment_layers: int = 0
    randaugment_magnitude: float = 9.0
    randaugment_std: float = 0.5
    erase: float = 0.0
    erase_fill: str = "noise"
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_switch: float = 0.5
    mix_probability: float = 1.0
    repeats: int = 1

    def __new__(cls, **values):
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                raise UserError(f"unknown augmentation '{name}': {nearest(name, known)}")
        return super().__new__(cls)

    def __post_init__(self):
        check_choice("augmentation crop", self.crop, CROPS)
        check_choice("augmentation erase_fill", self.erase_fill, ERASE_FILLS)
        for name in ("erase", "mix_switch", "mix_probability"):
            _check(self, name, 0 <= getattr(self, name) <= 1, "a probability")
        for name in ("color_jitter", "randaugment_layers", "randaugment_std", "mixup", "cutmix"):
            _check(self, name, getattr(self, name) >= 0, "0 (off) or more")
        _check(self, "pad", self.pad >= 1, "1 or more")
        _check(self, "repeats", self.repeats >= 1, "1 or more")
        _check(self, "randaugment_magnitude", 0 <= self.randaugment_magnitude <= 10, "from 0 to 10")
        _check(self, "scale", _ascending(self.scale) and self.scale[1] <= 1, "(low, high) with 0 < low <= high <= 1")
        _check(self, "ratio", _ascending(self.ratio), "(low, high) with 0 < low <= high")

    @property
    def mixes(self) -> bool:
        """Whether batches carry `label_other` and `label_weight`."""
        return self.mixup > 0 or self.cutmix > 0


def _check(augmentation: Augmentation, name: str, right: bool, meaning: str) -> None:
    if not right:
        raise UserError(f"augmentation {name} is {getattr(augmentation, name)}: it should be {meaning}")


def _ascending(interval: Sequence[float]) -> bool:
    return len(interval) == 2 and 0 < interval[0] <= interval[1]


# One image: geometry


def to_pil(image: np.ndarray) -> Image.Image:
    """Turns uint8 `(H, W, C)` into a Pillow image of mode L or RGB."""
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def from_pil(image: Image.Image) -> np.ndarray:
    """Turns a Pillow image of mode L or RGB into uint8 `(H, W, C)`."""
    pixels = np.asarray(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def fit(
    image: np.ndarray,
    size: tuple[int, int],
    resize: str = "stretch",
    interpolation: str = "bilinear",
    crop_fraction: float = 1.0,
) -> np.ndarray:
    """Brings an image to `size` (H, W), always with antialiasing.

    `stretch` resizes both sides; `crop` resizes so that the image covers `size / crop_fraction`, keeping its shape,
    and takes the centre, rounded as torchvision does. An image that has the size already is returned as it is.
    """
    height, width = size
    if image.shape[:2] == (height, width) and crop_fraction == 1:
        return image
    resample = INTERPOLATIONS[interpolation]
    if resize == "stretch":
        return from_pil(to_pil(image).resize((width, height), resample))
    target_height, target_width = math.floor(height / crop_fraction), math.floor(width / crop_fraction)
    scale = max(target_height / image.shape[0], target_width / image.shape[1])
    # The small number keeps the side that sets the scale from being truncated one pixel short.
    new_height, new_width = (int(side * scale + 1e-6) for side in image.shape[:2])
    resized = from_pil(to_pil(image).resize((new_width, new_height), resample))
    top, left = round((new_height - height) / 2), round((new_width - width) / 2)
    return resized[top : top + height, left : left + width]


def random_resized_crop(
    image: np.ndarray,
    rng: np.random.Generator,
    size: tuple[int, int],
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    interpolation: str = "bilinear",
) -> np.ndarray:
    """Crops a random share `scale` of the area with a random aspect `ratio` (w / h) and resizes it to `size` (H, W)."""
    top, left, height, width = _resized_crop_box(image.shape[:2], rng, scale, ratio)
    cropped = to_pil(image[top : top + height, left : left + width])
    return from_pil(cropped.resize(size[::-1], INTERPOLATIONS[interpolation]))


def _resized_crop_box(shape, rng, scale, ratio, tries: int = 10) -> tuple[int, int, int, int]:
    height, width = shape
    for _ in range(tries):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(*np.log(ratio)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    # As torchvision: the largest centred box with an allowed aspect.
    aspect = min(max(width / height, ratio[0]), ratio[1])
    w, h = min(width, round(height * aspect)), min(height, round(width / aspect))
    return (height - h) // 2, (width - w) // 2, h, w


# One image: colours and RandAugment


def color_jitter(image: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Changes brightness, contrast and saturation, in random order, each by a factor in 1 -+ `strength`."""
    picture = to_pil(image)
    for index in rng.permutation(3):
        enhance = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[index]
        picture = enhance(picture).enhance(rng.uniform(max(0.0, 1 - strength), 1 + strength))
    return from_pil(picture)


def randaugment(
    image: np.ndarray,
    rng: np.random.Generator,
    layers: int = 2,
    magnitude: float = 9.0,
    std: float = 0.5,
    fill: tuple[int, ...] = (128,),
    interpolation: str = "bicubic",
) -> np.ndarray:
    """RandAugment (Cubuk 2020) in timm's "increasing" form, as DeiT uses it (`rand-m9-mstd0.5-inc1`).

    `layers` operations are drawn with replacement, each done with probability 1/2 at a magnitude drawn from
    N(`magnitude`, `std`), clipped to 0..10. Pixels moved in from outside get the colour `fill`.
    """
    picture = to_pil(image)
    names = tuple(OPERATIONS)
    for index in rng.integers(len(names), size=layers):
        if rng.random() < 0.5:
            continue
        level = min(max(rng.normal(magnitude, std), 0.0), 10.0) / 10
        picture = apply_operation(picture, names[index], level, rng, fill, interpolation)
    return from_pil(picture)


def apply_operation(
    picture: Image.Image,
    name: str,
    level: float,
    rng: np.random.Generator,
    fill: tuple[int, ...] = (128,),
    interpolation: str = "bicubic",
) -> Image.Image:
    """Does one of `OPERATIONS` to an image of mode L or RGB at `level` 0..1; geometric ones draw their direction."""
    operation = OPERATIONS[name]
    if name not in _SIGNED:
        return operation(picture, level)
    signed = -level if rng.random() < 0.5 else level
    if name not in _GEOMETRIC:
        return operation(picture, signed)
    color = fill[0] if picture.mode == "L" else tuple(fill) * (3 // len(fill))
    return operation(picture, signed, {"resample": INTERPOLATIONS[interpolation], "fillcolor": color})


def _affine(picture: Image.Image, matrix: tuple[float, ...], options: dict) -> Image.Image:
    return picture.transform(picture.size, Image.Transform.AFFINE, matrix, **options)


def _enhance(kind: type) -> Callable:
    return lambda picture, level: kind(picture).enhance(max(0.1, 1 + 0.9 * level))


def _posterize(picture: Image.Image, level: float) -> Image.Image:
    # At full level no bit is kept, as in timm; Pillow's own posterize refuses that.
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
    "shear_x": lambda picture, level, options: _affine(picture, (1, 0.3 * level, 0, 0, 1, 0), options),
    "shear_y": lambda picture, level, options: _affine(picture, (1, 0, 0, 0.3 * level, 1, 0), options),
    "translate_x": lambda picture, level, options: _affine(
        picture, (1, 0, 0.45 * level * picture.width, 0, 1, 0), options
    ),
    "translate_y": lambda picture, level, options: _affine(
        picture, (1, 0, 0, 0, 1, 0.45 * level * picture.height), options
    ),
}
_GEOMETRIC = frozenset(["rotate", "shear_x", "shear_y", "translate_x", "translate_y"])
_SIGNED = _GEOMETRIC | {"color", "contrast", "brightness", "sharpness"}


# A batch of uint8


def pad_crop(images: np.ndarray, pad: int, offsets: np.ndarray) -> np.ndarray:
    """Zero-pads by `pad` on every side and crops back; `offsets` (B, 2) in 0..2 pad are each crop's top left."""
    height, width = images.shape[1:3]
    padded = np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    windows = np.moveaxis(sliding_window_view(padded, (height, width), axis=(1, 2)), 3, -1)
    return windows[np.arange(len(images)), offsets[:, 0], offsets[:, 1]]


def flip(images: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Mirrors the `chosen` (B,) bool rows left to right."""
    flipped = images.copy()
    flipped[chosen] = images[chosen, :, ::-1]
    return flipped


def normalise(images: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Returns `(images / 255 - mean) / std` in float32 for uint8 images; `mean` and `std` have 1 or C values."""
    mean, std = np.asarray(mean, np.float64), np.asarray(std, np.float64)
    normalised = images * (1 / (255 * std)).astype(np.float32)
    normalised += (-mean / std).astype(np.float32)
    return normalised


# A batch of float32


def draw_erase_boxes(
    rng: np.random.Generator,
    count: int,
    size: tuple[int, int],
    probability: float,
    area: tuple[float, float] = (0.02, 1 / 3),
    ratio: tuple[float, float] = (0.3, 1 / 0.3),
    tries: int = 10,
) -> np.ndarray:
    """Draws boxes (top, left, height, width), int `(count, 4)`, for random erasing (Zhong 2017, algorithm 1).

    A box has a share `area` of the image and the aspect `ratio`; rows that are not to be erased get an empty one.
    """
    height, width = size
    areas = height * width * rng.uniform(*area, (count, tries))
    aspects = np.exp(rng.uniform(*np.log(ratio), (count, tries)))
    heights = np.round(np.sqrt(areas * aspects)).astype(int)
    widths = np.round(np.sqrt(areas / aspects)).astype(int)
    fits = (heights < height) & (widths < width)
    first = np.arange(count), fits.argmax(axis=1)
    sizes = np.stack([heights[first], widths[first]], axis=1)
    corners = (rng.random((count, 2)) * (np.array(size) - sizes + 1)).astype(int)
    erased = fits.any(axis=1) & (rng.random(count) < probability)
    return np.concatenate([corners, sizes], axis=1) * erased[:, None]


def erase(images: np.ndarray, boxes: np.ndarray, rngs: Sequence[np.random.Generator] | None = None) -> np.ndarray:
    """Fills each row's box with normal noise from the row's generator, or with zeros where there are none."""
    erased = images.copy()
    for row in np.flatnonzero(boxes[:, 2]):
        top, left, height, width = boxes[row]
        patch = erased[row, top : top + height, left : left + width]
        patch[...] = 0 if rngs is None else rngs[row].standard_normal(patch.shape, np.float32)
    return erased


def draw_mix(
    rng: np.random.Generator,
    count: int,
    size: tuple[int, int],
    mixup: float,
    cutmix: float,
    switch: float = 0.5,
    probability: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Draws for `count` pairs how they are mixed: weights float32 `(count,)` and boxes int `(count, 4)`.

    An image keeps `weight` of itself outside the box and takes the box from its partner: mixup (Zhang 2018) has a
    weight from Beta(mixup, mixup) and no box, CutMix (Yun 2019) weight 1 and a box of the share 1 - Beta(cutmix,
    cutmix), cut off at the border.
    """
    cut = rng.random(count) < (switch if mixup > 0 and cutmix > 0 else float(cutmix > 0))
    mixed = rng.random(count) < probability
    weights = rng.beta(mixup or 1.0, mixup or 1.0, count)
    sides = np.sqrt(1 - rng.beta(cutmix or 1.0, cutmix or 1.0, count))[:, None] * size
    centers = (rng.random((count, 2)) * size).astype(int)
    low = np.clip(centers - sides.astype(int) // 2, 0, size)
    high = np.clip(centers + sides.astype(int) // 2, 0, size)
    boxes = np.concatenate([low, high - low], axis=1) * (cut & mixed)[:, None]
    return np.where(mixed & ~cut, weights, 1).astype(np.float32), boxes


def mix(
    images: np.ndarray, labels: np.ndarray, weights: np.ndarray, boxes: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mixes rows 2k and 2k + 1 with each other, both with the draw of their pair, repeated to `(B, ...)`.

    Returns the images, `label_other` `(B,)`, and `label_weight` float32 `(B,)`: the weight of a row's own label, for
    CutMix from the box's real area.
    """
    size = images.shape[1:3]
    rows, columns = (np.arange(side)[None, :] for side in size)
    top, left, height, width = (column[:, None] for column in boxes.T)
    in_rows, in_columns = (rows >= top) & (rows < top + height), (columns >= left) & (columns < left + width)
    inside = in_rows[:, :, None] & in_columns[:, None, :]
    share = np.where(inside, np.float32(0), weights[:, None, None])[..., None]
    mixed = images * share + _partner(images) * (1 - share)
    label_weight = weights * (1 - height[:, 0] * width[:, 0] / math.prod(size)).astype(np.float32)
    return mixed, _partner(labels), label_weight


def _partner(rows: np.ndarray) -> np.ndarray:
    return rows.reshape(-1, 2, *rows.shape[1:])[:, ::-1].reshape(rows.shape)
