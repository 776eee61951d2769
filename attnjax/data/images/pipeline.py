"""Batches of images: shuffled, augmented and sharded by process for training; every example once for evaluation.

Grain prefetches and keeps the iterator's state. Its elements are entire batches: one Grain element per image would
limit small images to a third of NumPy's throughput. A batch is a pure function of (seed, step), so the iterator's state
is the next step, and any number of processes loads the same global batches.
"""

import functools
import math
import os
import sys
from collections.abc import Callable, Iterable

import grain
import numpy as np

from attnjax.data.images import batch_ops, image_ops
from attnjax.data.images.augment import Augmentation
from attnjax.data.images.format import ImageFormat, Images
from attnjax.data.images.sources import ImageSource
from attnjax.data.shard import UNSHARDED, Shard
from attnjax.errors import UserError

Batch = dict[str, np.ndarray]

THREADS = os.cpu_count() or 1
_SHUFFLE, _AUGMENT = 0, 1  # separate random streams


def train_iterator(
    source: ImageSource,
    image_format: ImageFormat,
    augmentation: Augmentation,
    *,
    batch_size: int,
    seed: int,
    shard: Shard = UNSHARDED,
) -> grain.DatasetIterator:
    """Returns an endless iterator over this process's rows of shuffled, augmented batches.

    `batch_size` is global; B = batch_size / shard.count rows come out: `image` `(B, H, W, C)` uint8, `label` `(B,)`
    int32, `mask` `(B,)` bool (False for a skipped corrupt image), and what is left to do in the compiled step by
    `preparation.prepare`, with what was drawn for it: `flip` `(B,)` bool, `erase` `(B, 4)` int32, `erase_seed` `(B, 2)`
    uint32, `mix_weight` `(B,)` float32, `mix_box` `(B, 4)` int32.

    Every epoch is a new permutation drawn from `seed`; batches may straddle epochs. With `repeats` r, a batch has
    batch_size / r distinct images. The iterator has `get_state` and `set_state` and works with
    `grain.checkpoint.CheckpointSave`; a resumed iterator returns the same bits.

    UserError if the batch size does not fit `shard` or `augmentation`; while iterating, if an image is corrupt.
    """
    rows = shard.rows(batch_size)
    _check_rows(augmentation, batch_size, rows)
    if seed < 0:
        raise UserError(f"seed is {seed}: it should be 0 or more")
    indices = _batch_indices(len(source), batch_size, augmentation.repeats, seed)

    def batch(step: int) -> Batch:
        rng = np.random.default_rng((seed, _AUGMENT, step))
        return training_batch(source, indices(step), rows, rng, image_format, augmentation)

    return iter(grain.MapDataset.range(sys.maxsize).map(batch).to_iter_dataset(_read_options()))


def eval_batches(
    source: ImageSource, image_format: ImageFormat, *, batch_size: int, shard: Shard = UNSHARDED
) -> Iterable[Batch]:
    """Returns a re-iterable over this process's rows of every example once, in order; errors as in `train_iterator`.

    Batches are like those of `train_iterator`. The last one is padded with zero rows whose `mask` is False, so that all
    batches have one shape and every process gets the same number.
    """
    rows = shard.rows(batch_size)

    def batch(step: int) -> Batch:
        start = step * batch_size
        indices = np.arange(start + rows.start, start + rows.stop)
        return eval_batch(source, np.where(indices < len(source), indices, -1), image_format)

    return grain.MapDataset.range(math.ceil(len(source) / batch_size)).map(batch).to_iter_dataset(_read_options())


def training_batch(
    source: ImageSource,
    indices: np.ndarray,
    rows: slice,
    rng: np.random.Generator,
    image_format: ImageFormat,
    augmentation: Augmentation,
) -> Batch:
    """Returns `rows` of the global batch of `indices`, as in `train_iterator`; `rng` draws for the global batch.

    An index of -1 is a row whose `mask` is False.
    """
    draws = _draw(augmentation, rng, len(indices), image_format.image_size)
    draws = {name: values[rows] for name, values in draws.items()}
    images, labels, mask = _load(source, indices[rows])
    images = _augmented(images, draws, image_format, augmentation)
    return {"image": images, "label": labels, "mask": mask} | draws


def eval_batch(source: ImageSource, indices: np.ndarray, image_format: ImageFormat) -> Batch:
    """Returns the examples of `indices`, as in `eval_batches`; -1 is a row whose `mask` is False."""
    images, labels, mask = _load(source, indices)
    return {"image": image_format.fit_batch(images), "label": labels * mask, "mask": mask}


def _load(source: ImageSource, indices: np.ndarray) -> tuple[Images, np.ndarray, np.ndarray]:
    """Loads examples; for -1 an arbitrary one, masked."""
    images, labels, mask = source.load(np.where(indices < 0, len(source) - 1, indices))
    return images, labels, mask & (indices >= 0)


def _batch_indices(length: int, batch_size: int, repeats: int, seed: int) -> Callable[[int], np.ndarray]:
    """Returns a function from a step to the indices of its global batch."""
    distinct = batch_size // repeats

    @functools.lru_cache(maxsize=4)  # prefetching threads may be in two epochs at once
    def permutation(epoch: int) -> np.ndarray:
        return np.random.default_rng((seed, _SHUFFLE, epoch)).permutation(length)

    def indices(step: int) -> np.ndarray:
        epochs, places = np.divmod(np.arange(step * distinct, (step + 1) * distinct), length)
        parts = [permutation(int(epoch))[places[epochs == epoch]] for epoch in np.unique(epochs)]
        # Tiled, not repeated, so that the neighbours that mixup pairs are different images.
        return np.tile(np.concatenate(parts), repeats)

    return indices


def _draw(
    augmentation: Augmentation, rng: np.random.Generator, batch_size: int, size: tuple[int, int]
) -> dict[str, np.ndarray]:
    """Draws for the global batch: the vectorised operations, and a seed per row for those done image by image."""
    draws: dict[str, np.ndarray] = {}
    if augmentation.by_image:
        draws["seed"] = rng.integers(2**63, size=batch_size)
    if augmentation.crop == "pad":
        draws["offset"] = rng.integers(2 * augmentation.pad + 1, size=(batch_size, 2))
    if augmentation.flip:
        draws["flip"] = rng.random(batch_size) < 0.5
    if augmentation.erase:
        draws["erase"] = batch_ops.draw_erase_boxes(rng, batch_size, size, augmentation.erase)
        if augmentation.erase_fill == "noise":
            draws["erase_seed"] = rng.integers(2**32, size=(batch_size, 2), dtype=np.uint32)
    if augmentation.mixes:
        pairs = batch_ops.draw_mix(rng, batch_size // 2, size, augmentation)
        draws["mix_weight"], draws["mix_box"] = (values.repeat(2, axis=0) for values in pairs)
    return draws


def _augmented(images, draws, image_format, augmentation) -> np.ndarray:
    """Crops, changes colours and applies RandAugment, by the `seed` and `offset` that it takes from `draws`.

    The flip comes after them, on the device. The distribution is that of flipping first: they are symmetric.
    """
    rngs = [np.random.default_rng(value) for value in draws.pop("seed", ())]

    def each(operation, *options):
        return np.stack([operation(image, rng, *options) for image, rng in zip(images, rngs, strict=True)])

    if augmentation.crop == "resized":
        images = each(image_ops.random_resized_crop, augmentation, image_format)
    else:
        images = image_format.fit_batch(images, train=True)
    if augmentation.crop == "pad":
        images = batch_ops.pad_crop(images, augmentation.pad, draws.pop("offset"))
    if augmentation.color_jitter:
        images = each(image_ops.color_jitter, augmentation.color_jitter)
    if augmentation.randaugment_layers:
        images = each(image_ops.randaugment, augmentation, image_format)
    return images


def _check_rows(augmentation: Augmentation, batch_size: int, rows: slice) -> None:
    repeats, count = augmentation.repeats, rows.stop - rows.start
    if batch_size % repeats or batch_size // repeats < 2 <= repeats:
        right = f"with {repeats} repeats it should be a multiple of {repeats}, and {2 * repeats} or more"
        raise UserError(f"batch_size is {batch_size}: {right}")
    if augmentation.mixes and count % 2:
        raise UserError(f"mixup and cutmix pair images: the rows per process should be even, not {count}")


def _read_options() -> grain.ReadOptions:
    return grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=2 * THREADS)
