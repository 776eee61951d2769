"""Augmentation of a batch `(B, H, W, C)`: pad-and-crop, flip, random erasing (Zhong 2017), mixup and CutMix.

Each function takes what a `draw_*` function or its caller drew for the rows, so that the rows of a global batch can be
divided among processes without changing them.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from attnjax.data.images.augment import Augmentation

ERASE_AREA = (0.02, 1 / 3)
ERASE_RATIO = (0.3, 1 / 0.3)
ERASE_TRIES = 10


def pad_crop(images: np.ndarray, pad: int, offsets: np.ndarray) -> np.ndarray:
    """Zero-pads by `pad` on every side and crops to the old size at `offsets` `(B, 2)` (top, left) in 0..2 pad."""
    height, width = images.shape[1:3]
    padded = np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    windows = np.moveaxis(sliding_window_view(padded, (height, width), axis=(1, 2)), 3, -1)
    return windows[np.arange(len(images)), offsets[:, 0], offsets[:, 1]]


def flip(images: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Mirrors the rows with `chosen`, bool `(B,)`, left to right."""
    flipped = images.copy()
    flipped[chosen] = images[chosen, :, ::-1]
    return flipped


def draw_erase_boxes(rng: np.random.Generator, count: int, size: tuple[int, int], probability: float) -> np.ndarray:
    """Draws boxes (top, left, height, width), int `(count, 4)`, for random erasing (Zhong 2017, algorithm 1).

    A box has a share of the image in `ERASE_AREA` and an aspect in `ERASE_RATIO`; rows not to be erased get an empty
    box.
    """
    height, width = size
    areas = height * width * rng.uniform(*ERASE_AREA, (count, ERASE_TRIES))
    low, high = np.log(ERASE_RATIO)
    aspects = np.exp(rng.uniform(low, high, (count, ERASE_TRIES)))
    heights = np.round(np.sqrt(areas * aspects)).astype(int)
    widths = np.round(np.sqrt(areas / aspects)).astype(int)
    fits = (heights < height) & (widths < width)
    first = np.arange(count), fits.argmax(axis=1)
    sizes = np.stack([heights[first], widths[first]], axis=1)
    corners = (rng.random((count, 2)) * (np.array(size) - sizes + 1)).astype(int)
    erased = fits.any(axis=1) & (rng.random(count) < probability)
    return np.concatenate([corners, sizes], axis=1) * erased[:, None]


def erase(images: np.ndarray, boxes: np.ndarray, rngs: Sequence[np.random.Generator] | None = None) -> np.ndarray:
    """Fills each row's box with normal noise from the row's generator, or with zeros if there are no generators."""
    erased = images.copy()
    for row in np.flatnonzero(boxes[:, 2]).tolist():
        top, left, height, width = boxes[row]
        patch = erased[row, top : top + height, left : left + width]
        patch[...] = 0 if rngs is None else rngs[row].standard_normal(patch.shape, np.float32)
    return erased


def draw_mix(
    rng: np.random.Generator, count: int, size: tuple[int, int], augmentation: Augmentation
) -> tuple[np.ndarray, np.ndarray]:
    """Draws how each of `count` pairs is mixed: weights float32 `(count,)` and boxes int `(count, 4)`.

    An image keeps the share `weight` of itself outside the box and takes the box from its partner. Mixup (Zhang 2018)
    has a weight from Beta(mixup, mixup) and no box; CutMix (Yun 2019) has weight 1 and a box of the share
    1 - Beta(cutmix, cutmix) of the image, clipped at the border.
    """
    mixup, cutmix = augmentation.mixup, augmentation.cutmix
    cut = rng.random(count) < (augmentation.mix_switch if mixup > 0 and cutmix > 0 else float(cutmix > 0))
    mixed = rng.random(count) < augmentation.mix_probability
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
    """Mixes rows 2k and 2k + 1 with each other; `weights` and `boxes` `(B, ...)` repeat the draw of each pair.

    Returns the images, `label_other` `(B,)`, and `label_weight` float32 `(B,)`, the weight of a row's own label; for
    CutMix it follows from the area of the clipped box.
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
