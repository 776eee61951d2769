"""Augmentation of a batch `(B, H, W, C)`: pad-and-crop, flip, random erasing (Zhong 2017), mixup and CutMix.

Each function takes what a `draw_*` function or its caller drew for the rows, so that the rows of a global batch can be
divided among processes without changing them. The host draws, pads and crops; `flip`, `erase` and `mix` are part of the
compiled step, by `preparation.prepare`.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from attnjax.data.images.augment import Augmentation

ERASE_AREA = (0.02, 1 / 3)
ERASE_RATIO = (0.3, 1 / 0.3)
ERASE_TRIES = 10


def pad_crop(images: np.ndarray, pad: int, offsets: np.ndarray) -> np.ndarray:
    """Zero-pads by `pad` on every side and crops to the old size at `offsets` `(B, 2)` (top, left) in 0..2 pad."""
    height, width = images.shape[1:3]
    padded = np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    cropped = np.empty_like(images)
    for row, (top, left) in enumerate(offsets.tolist()):
        cropped[row] = padded[row, top : top + height, left : left + width]
    return cropped


def flip(images: jax.Array, chosen: jax.Array) -> jax.Array:
    """Mirrors the rows with `chosen`, bool `(B,)`, left to right."""
    return jnp.where(chosen[:, None, None, None], images[:, :, ::-1], images)


def draw_erase_boxes(rng: np.random.Generator, count: int, size: tuple[int, int], probability: float) -> np.ndarray:
    """Draws boxes (top, left, height, width), int32 `(count, 4)`, for random erasing (Zhong 2017, algorithm 1).

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
    return (np.concatenate([corners, sizes], axis=1) * erased[:, None]).astype(np.int32)


def erase(images: jax.Array, boxes: jax.Array, noise: jax.Array | float = 0.0) -> jax.Array:
    """Fills each row's box with `noise`, an array like `images`, or zeros."""
    return jnp.where(_inside(images, boxes), noise, images)


def draw_mix(
    rng: np.random.Generator, count: int, size: tuple[int, int], augmentation: Augmentation
) -> tuple[np.ndarray, np.ndarray]:
    """Draws how each of `count` pairs is mixed: weights float32 `(count,)` and boxes int32 `(count, 4)`.

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
    return np.where(mixed & ~cut, weights, 1).astype(np.float32), boxes.astype(np.int32)


def mix(
    images: jax.Array, labels: jax.Array, weights: jax.Array, boxes: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Mixes rows 2k and 2k + 1 with each other; `weights` and `boxes` `(B, ...)` repeat the draw of each pair.

    Returns the images, `label_other` `(B,)`, and `label_weight` float32 `(B,)`, the weight of a row's own label; for
    CutMix it follows from the area of the clipped box.
    """
    share = jnp.where(_inside(images, boxes), np.float32(0), weights[:, None, None, None])
    # A pair's sum less the image, not `partner`: XLA for CPUs would fuse what comes before, without vectorizing it.
    sums = jnp.broadcast_to(_pairs(images).sum(axis=1, keepdims=True), _pairs(images).shape)
    mixed = images * share + (sums.reshape(images.shape) - images) * (1 - share)
    area = (boxes[:, 2] * boxes[:, 3] / math.prod(images.shape[1:3])).astype(np.float32)
    return mixed, partner(labels), weights * (1 - area)


def partner(rows: jax.Array) -> jax.Array:
    """Returns the row that each row is paired with: 2k + 1 for 2k, and the other way round."""
    return _pairs(rows)[:, ::-1].reshape(rows.shape)


def _pairs(rows):
    return rows.reshape(-1, 2, *rows.shape[1:])


def _inside(images, boxes):
    """Returns which pixels are in their row's box (top, left, height, width), bool `(B, H, W, 1)`."""
    (top, left, height, width), (rows, columns) = boxes.T[..., None], map(np.arange, images.shape[1:3])
    in_rows, in_columns = (rows >= top) & (rows < top + height), (columns >= left) & (columns < left + width)
    return in_rows[:, :, None, None] & in_columns[:, None, :, None]
