"""Batches of images: shuffled, augmented and sharded by process for training; every example once for evaluation.

Grain prefetches and keeps the iterator's state. Its elements are entire batches: one Grain element per image would
limit small images to a third of NumPy's throughput. A batch is a pure function of (seed, step), so the iterator's state
is the next step, and any number of processes and threads loads the same global batches.

The images of a batch are decoded and augmented by the threads of one pool, which is shared by all iterators: decoding
and resizing release the GIL.
"""

import functools
import math
import os
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import grain
import numpy as np

from attnjax.data.images import batch_ops, image_ops
from attnjax.data.images.augment import Augmentation
from attnjax.data.images.format import ImageFormat, Images
from attnjax.data.images.sources import ImageSource
from attnjax.data.shard import UNSHARDED, Shard
from attnjax.errors import UserError

Batch = dict[str, np.ndarray]

_PREFETCH = 16  # batches that are ready before they are asked for, or being loaded
_PREFETCH_BYTES = 2**30  # of them, or a single one where one has more
_PARTS = 4  # of a batch per thread, as some images take longer than others
_SMALLEST_PART = 2**20  # bytes: on less, threads spend their time waiting for the GIL
_SHUFFLE, _AUGMENT = 0, 1  # separate random streams


def train_iterator(
    source: ImageSource,
    image_format: ImageFormat,
    augmentation: Augmentation,
    *,
    batch_size: int,
    seed: int,
    shard: Shard = UNSHARDED,
    workers: int = 0,
) -> grain.DatasetIterator:
    """Returns an endless iterator over this process's rows of shuffled, augmented batches.

    `batch_size` is global; B = batch_size / shard.count rows come out: `image` `(B, H, W, C)` uint8, `label` `(B,)`
    int32, `mask` `(B,)` bool (False for a skipped corrupt image), and what is left to do in the compiled step by
    `preparation.prepare`, with what was drawn for it: `flip` `(B,)` bool, `erase` `(B, 4)` int32, `erase_seed` `(B, 2)`
    uint32, `mix_weight` `(B,)` float32, `mix_box` `(B, 4)` int32.

    Every epoch is a new permutation drawn from `seed`, in which each image comes `repeats` times in a row; batches may
    straddle epochs. `workers` is the number of threads, 0 for one per core. The iterator has `get_state` and
    `set_state` and works with `grain.checkpoint.CheckpointSave`; a resumed iterator returns the same bits.

    UserError if the batch size does not fit `shard` or the mixing of pairs; while iterating, if an image is corrupt.
    """
    rows = shard.rows(batch_size)
    if augmentation.mixes and batch_size % 2:
        raise UserError(f"batch_size is {batch_size}: it should be even, as mixup and cutmix pair images")
    if seed < 0:
        raise UserError(f"seed is {seed}: it should be 0 or more")
    indices = _batch_indices(len(source), batch_size, augmentation.repeats, seed)

    def batch(step: int) -> Batch:
        rng = np.random.default_rng((seed, _AUGMENT, step))
        return training_batch(source, indices(step), rows, rng, image_format, augmentation, workers)

    dataset = grain.MapDataset.range(sys.maxsize).map(batch)
    return iter(dataset.to_iter_dataset(_read_options(image_format, rows, workers)))


def eval_batches(
    source: ImageSource, image_format: ImageFormat, *, batch_size: int, shard: Shard = UNSHARDED, workers: int = 0
) -> Iterable[Batch]:
    """Returns a re-iterable over this process's rows of every example once, in order; errors as in `train_iterator`.

    Batches are like those of `train_iterator`. The last one is padded with zero rows whose `mask` is False, so that all
    batches have one shape and every process gets the same number.
    """
    rows = shard.rows(batch_size)

    def batch(step: int) -> Batch:
        start = step * batch_size
        indices = np.arange(start + rows.start, start + rows.stop)
        return eval_batch(source, np.where(indices < len(source), indices, -1), image_format, workers)

    dataset = grain.MapDataset.range(math.ceil(len(source) / batch_size)).map(batch)
    return dataset.to_iter_dataset(_read_options(image_format, rows, workers))


def training_batch(
    source: ImageSource,
    indices: np.ndarray,
    rows: slice,
    rng: np.random.Generator,
    image_format: ImageFormat,
    augmentation: Augmentation,
    workers: int = 0,
) -> Batch:
    """Returns `rows` of the global batch of `indices`, as in `train_iterator`; `rng` draws for the global batch.

    An index of -1 is a row whose `mask` is False.
    """
    draws = _draw(augmentation, rng, len(indices), image_format.image_size)
    draws = {name: values[rows] for name, values in draws.items()}
    seeds, offsets = draws.pop("seed", None), draws.pop("offset", None)

    def augment(images, part, out):
        rngs = [] if seeds is None else [np.random.default_rng(seed) for seed in seeds[part]]
        _augment(images, rngs, None if offsets is None else offsets[part], image_format, augmentation, out)

    return _loaded(source, indices[rows], image_format.shape, augment, workers) | draws


def eval_batch(source: ImageSource, indices: np.ndarray, image_format: ImageFormat, workers: int = 0) -> Batch:
    """Returns the examples of `indices`, as in `eval_batches`; -1 is a row whose `mask` is False."""

    def fit(images, part, out):
        image_format.fit_batch(images, out)

    batch = _loaded(source, indices, image_format.shape, fit, workers)
    return batch | {"label": batch["label"] * batch["mask"]}


def _loaded(source: ImageSource, indices: np.ndarray, shape: tuple[int, ...], transform, workers: int) -> Batch:
    """Loads examples in parts of the batch, whose images `transform(images, part, out)` writes to `out`."""
    count = len(indices)
    batch: Batch = {
        "image": np.empty((count, *shape), np.uint8),
        "label": np.empty(count, np.int32),
        "mask": np.empty(count, bool),
    }

    def fill(part: slice) -> None:
        images, batch["label"][part], batch["mask"][part] = _load(source, indices[part])
        transform(images, part, batch["image"][part])

    workers = workers or os.cpu_count() or 1
    size = max(math.ceil(_SMALLEST_PART / math.prod(shape)), math.ceil(count / (_PARTS * workers)))
    parts = [slice(start, start + size) for start in range(0, count, size)]
    for _ in (map if workers == 1 or len(parts) == 1 else _pool(workers).map)(fill, parts):
        pass  # raises what a part raised
    return batch


def _load(source: ImageSource, indices: np.ndarray) -> tuple[Images, np.ndarray, np.ndarray]:
    """Loads examples; for -1 an arbitrary one, masked."""
    images, labels, mask = source.load(np.where(indices < 0, len(source) - 1, indices))
    return images, labels, mask & (indices >= 0)


@functools.cache
def _pool(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, thread_name_prefix="images")


def _batch_indices(length: int, batch_size: int, repeats: int, seed: int) -> Callable[[int], np.ndarray]:
    """Returns a function from a step to the indices of its global batch."""

    @functools.lru_cache(maxsize=4)  # prefetching threads may be in two epochs at once
    def permutation(epoch: int) -> np.ndarray:
        return np.random.default_rng((seed, _SHUFFLE, epoch)).permutation(length)

    def indices(step: int) -> np.ndarray:
        places, copies = np.divmod(np.arange(step * batch_size, (step + 1) * batch_size), repeats)
        epochs, places = np.divmod(places, length)
        found = np.empty(batch_size, np.int64)
        for epoch in np.unique(epochs):
            found[epochs == epoch] = permutation(int(epoch))[places[epochs == epoch]]
        # First copies first, and so on, so that the neighbours that mixup pairs are different images.
        return found[np.argsort(copies, kind="stable")]

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


def _augment(images, rngs, offsets, image_format, augmentation, out) -> None:
    """Crops, changes colours and applies RandAugment, to uint8 `out` (B, H, W, C).

    The flip comes after them, on the device. The distribution is that of flipping first: they are symmetric.
    """

    def each(images, operation, *options):
        for row, (image, rng) in enumerate(zip(images, rngs, strict=True)):
            out[row] = operation(image, rng, *options)

    if augmentation.crop == "resized":
        each(images, image_ops.random_resized_crop, augmentation, image_format)
    else:
        image_format.fit_batch(images, out, train=True)
    if augmentation.crop == "pad":
        out[...] = batch_ops.pad_crop(out, augmentation.pad, offsets)
    if augmentation.color_jitter:
        each(out, image_ops.color_jitter, augmentation.color_jitter)
    if augmentation.randaugment_layers:
        each(out, image_ops.randaugment, augmentation, image_format)


def _read_options(image_format: ImageFormat, rows: slice, workers: int) -> grain.ReadOptions:
    """Prefetches few batches, as each is loaded by all threads: one where batches are large, else two at a time."""
    size = (rows.stop - rows.start) * math.prod(image_format.shape)
    ahead = max(1, min(_PREFETCH, _PREFETCH_BYTES // size))
    return grain.ReadOptions(num_threads=min(2, ahead, workers or 2), prefetch_buffer_size=ahead)
