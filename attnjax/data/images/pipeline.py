"""Batches from sources: shuffled, augmented and shared out by process for training; each example once for evaluation.

Grain prefetches and keeps the iterator's state; its elements are whole batches, because its cost per element would
cap small images at a third of what NumPy can gather. A batch is a pure function of (seed, step), so that the state is
the number of the next step, and any number of processes shares the same global batches.
"""

import functools
import math
import os
import sys
from collections.abc import Callable, Iterable, Sequence

import grain
import numpy as np

from attnjax.data.images.augment import (
    INTERPOLATIONS,
    RESIZES,
    Augmentation,
    color_jitter,
    draw_erase_boxes,
    draw_mix,
    erase,
    fit,
    flip,
    mix,
    normalise,
    pad_crop,
    randaugment,
    random_resized_crop,
)
from attnjax.data.images.sources import Images, ImageSource
from attnjax.errors import UserError, check_choice

Batch = dict[str, np.ndarray]

THREADS = os.cpu_count() or 1

# Keep the random streams of shuffling and of augmentation apart.
_SHUFFLE, _AUGMENT = 0, 1


def train_iterator(
    source: ImageSource,
    *,
    batch_size: int,
    image_size: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    augmentation: Augmentation,
    seed: int,
    resize: str = "stretch",
    interpolation: str = "bilinear",
    process_index: int = 0,
    process_count: int = 1,
    threads: int = THREADS,
) -> grain.DatasetIterator:
    """Makes an endless iterator over this process's rows of shuffled, augmented batches.

    `batch_size` is the global one, B = batch_size / process_count the rows that come out: `image` `(B, H, W, C)`
    float32, `label` `(B,)` int32, `mask` `(B,)` bool (False for a skipped corrupt image), and where `augmentation`
    mixes, `label_other` `(B,)` int32 and `label_weight` `(B,)` float32, the weight of `label`.

    Every epoch is a new permutation by `seed`, and the next one follows without a gap, so batches may straddle them.
    With `repeats` r a batch holds batch_size / r distinct images. The iterator has `get_state` and `set_state`, and
    goes into `grain.checkpoint.CheckpointSave`; resumed, it gives the same bits.

    Raises:
        UserError: sizes or choices that do not fit each other; while iterating, a corrupt image.
    """
    rows = _process_rows(batch_size, process_index, process_count)
    check_images(source.channels, image_size, mean, std, resize, interpolation)
    _check_rows(augmentation, batch_size, rows)
    if seed < 0:
        raise UserError(f"seed is {seed}: it should be 0 or more")
    indices = _batch_indices(len(source), batch_size, augmentation.repeats, seed)

    def batch(step: int) -> Batch:
        rng = np.random.default_rng((seed, _AUGMENT, step))
        return training_batch(
            source,
            indices(step),
            rows,
            rng,
            augmentation,
            image_size=image_size,
            mean=mean,
            std=std,
            resize=resize,
            interpolation=interpolation,
        )

    dataset = grain.MapDataset.range(sys.maxsize).map(batch)
    return iter(dataset.to_iter_dataset(_read_options(threads)))


def eval_batches(
    source: ImageSource,
    *,
    batch_size: int,
    image_size: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    resize: str = "stretch",
    interpolation: str = "bilinear",
    crop_fraction: float = 1.0,
    process_index: int = 0,
    process_count: int = 1,
    threads: int = THREADS,
) -> Iterable[Batch]:
    """Makes an iterable, which may be gone through again, over this process's rows of every example once, in order.

    Batches are as `train_iterator`'s; the last one is filled up with zero rows whose `mask` is False, so that all
    have one shape and every process gets the same number. For `crop_fraction` see `images.fit`.

    Raises:
        UserError: sizes or choices that do not fit each other; while iterating, a corrupt image.
    """
    rows = _process_rows(batch_size, process_index, process_count)
    check_images(source.channels, image_size, mean, std, resize, interpolation, crop_fraction)

    def batch(step: int) -> Batch:
        start = step * batch_size
        indices = np.arange(start + rows.start, start + rows.stop)
        return eval_batch(
            source,
            np.where(indices < len(source), indices, -1),
            image_size=image_size,
            mean=mean,
            std=std,
            resize=resize,
            interpolation=interpolation,
            crop_fraction=crop_fraction,
        )

    steps = math.ceil(len(source) / batch_size)
    return grain.MapDataset.range(steps).map(batch).to_iter_dataset(_read_options(threads))


# One batch


def training_batch(
    source: ImageSource,
    indices: np.ndarray,
    rows: slice,
    rng: np.random.Generator,
    augmentation: Augmentation,
    *,
    image_size: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    resize: str,
    interpolation: str,
) -> Batch:
    """Returns the `rows` of the global batch of `indices`, as `train_iterator` has it; `rng` draws for all of it."""
    draws = _draw(augmentation, rng, len(indices), image_size)
    draws = {name: values[rows] for name, values in draws.items()}
    images, labels, mask = _load(source, indices[rows])
    rngs = [np.random.default_rng(value) for value in draws.get("seed", ())]
    images = _geometry(images, draws, rngs, augmentation, image_size, resize, interpolation)
    images = _colors(images, rngs, augmentation, mean, interpolation)
    images = normalise(images, mean, std)
    if augmentation.erase:
        images = erase(images, draws["erase"], rngs if augmentation.erase_fill == "noise" else None)
    images[~mask] = 0
    batch = {"image": images, "label": labels, "mask": mask}
    return batch | _mixed(batch, draws) if augmentation.mixes else batch


def eval_batch(
    source: ImageSource,
    indices: np.ndarray,
    *,
    image_size: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    resize: str,
    interpolation: str,
    crop_fraction: float,
) -> Batch:
    """Returns the images of `indices`, as `eval_batches` has them; -1 is a row of zeros, whose mask is False."""
    images, labels, mask = _load(source, indices)
    images = _sized(images, image_size, lambda image: fit(image, image_size, resize, interpolation, crop_fraction))
    images = normalise(images, mean, std)
    images[~mask] = 0
    return {"image": images, "label": labels * mask, "mask": mask}


def _load(source, indices):
    """Reads images; in the place of -1 any, masked."""
    images, labels, mask = source.load(np.where(indices < 0, len(source) - 1, indices))
    return images, labels, mask & (indices >= 0)


# Which examples


def _batch_indices(length: int, batch_size: int, repeats: int, seed: int) -> Callable[[int], np.ndarray]:
    """Returns the function from a step to the indices of its global batch."""
    distinct = batch_size // repeats

    @functools.lru_cache(maxsize=4)  # prefetching threads may be in two epochs at once
    def permutation(epoch: int) -> np.ndarray:
        return np.random.default_rng((seed, _SHUFFLE, epoch)).permutation(length)

    def indices(step: int) -> np.ndarray:
        epochs, places = np.divmod(np.arange(step * distinct, (step + 1) * distinct), length)
        parts = [permutation(int(epoch))[places[epochs == epoch]] for epoch in np.unique(epochs)]
        # Tiled, not repeated, so that mixup's neighbours are different images.
        return np.tile(np.concatenate(parts), repeats)

    return indices


# What is done to them


def _draw(
    augmentation: Augmentation, rng: np.random.Generator, batch_size: int, size: tuple[int, int]
) -> dict[str, np.ndarray]:
    """Draws for the whole global batch what is vectorised, and a seed by row for what is done image by image."""
    draws = {"seed": rng.integers(2**63, size=batch_size)} if _needs_row_generators(augmentation) else {}
    if augmentation.crop == "pad":
        draws["offset"] = rng.integers(2 * augmentation.pad + 1, size=(batch_size, 2))
    if augmentation.flip:
        draws["flip"] = rng.random(batch_size) < 0.5
    if augmentation.erase:
        draws["erase"] = draw_erase_boxes(rng, batch_size, size, augmentation.erase)
    if augmentation.mixes:
        pairs = draw_mix(
            rng,
            batch_size // 2,
            size,
            augmentation.mixup,
            augmentation.cutmix,
            augmentation.mix_switch,
            augmentation.mix_probability,
        )
        draws["mix_weight"], draws["mix_box"] = (values.repeat(2, axis=0) for values in pairs)
    return draws


def _needs_row_generators(augmentation: Augmentation) -> bool:
    return (
        augmentation.crop == "resized"
        or augmentation.color_jitter > 0
        or augmentation.randaugment_layers > 0
        or (augmentation.erase > 0 and augmentation.erase_fill == "noise")
    )


def _geometry(images, draws, rngs, augmentation, size, resize, interpolation) -> np.ndarray:
    if augmentation.crop == "resized":
        crop = functools.partial(
            random_resized_crop,
            size=size,
            scale=augmentation.scale,
            ratio=augmentation.ratio,
            interpolation=interpolation,
        )
        images = np.stack([crop(image, rng) for image, rng in zip(images, rngs, strict=True)])
    else:
        images = _sized(images, size, lambda image: fit(image, size, resize, interpolation))
    if augmentation.crop == "pad":
        images = pad_crop(images, augmentation.pad, draws["offset"])
    return flip(images, draws["flip"]) if augmentation.flip else images


def _sized(images: Images, size: tuple[int, int], fit_one: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Stacks images, each brought to `size`; arrays that have it already are taken as they are."""
    if isinstance(images, np.ndarray) and images.shape[1:3] == tuple(size):
        return images
    return np.stack([fit_one(image) for image in images])


def _colors(images, rngs, augmentation, mean, interpolation) -> np.ndarray:
    if augmentation.color_jitter:
        pairs = zip(images, rngs, strict=True)
        images = np.stack([color_jitter(image, rng, augmentation.color_jitter) for image, rng in pairs])
    if augmentation.randaugment_layers:
        change = functools.partial(
            randaugment,
            layers=augmentation.randaugment_layers,
            magnitude=augmentation.randaugment_magnitude,
            std=augmentation.randaugment_std,
            fill=tuple(round(255 * value) for value in mean),
            interpolation=interpolation,
        )
        images = np.stack([change(image, rng) for image, rng in zip(images, rngs, strict=True)])
    return images


def _mixed(batch: Batch, draws: dict[str, np.ndarray]) -> Batch:
    # A skipped image must not leak into its partner.
    whole = batch["mask"].reshape(-1, 2).all(axis=1).repeat(2)
    weights = np.where(whole, draws["mix_weight"], np.float32(1))
    boxes = draws["mix_box"] * whole[:, None]
    image, label_other, label_weight = mix(batch["image"], batch["label"], weights, boxes)
    return {"image": image, "label_other": label_other, "label_weight": label_weight}


# Arguments


def _process_rows(batch_size: int, process_index: int, process_count: int) -> slice:
    if batch_size < 1 or batch_size % process_count:
        raise UserError(f"batch_size is {batch_size}: it should be a multiple of the {process_count} process(es)")
    count = batch_size // process_count
    return slice(process_index * count, (process_index + 1) * count)


def check_images(channels, image_size, mean, std, resize, interpolation, crop_fraction=1.0) -> None:
    """Raises UserError if images cannot be brought to arrays so."""
    if len(image_size) != 2 or not all(isinstance(side, int) and side > 0 for side in image_size):
        raise UserError(f"image_size is {image_size}: it should be (height, width) in pixels")
    for name, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, channels):
            raise UserError(f"{name} has {len(values)} values: it should have 1 or {channels}, one by channel")
    if min(std) <= 0:
        raise UserError(f"std is {std}: it should be positive")
    check_choice("resize", resize, RESIZES)
    check_choice("interpolation", interpolation, tuple(INTERPOLATIONS))
    if not 0 < crop_fraction <= 1 or (crop_fraction < 1 and resize == "stretch"):
        raise UserError(
            f"crop_fraction is {crop_fraction}: it should be in (0, 1], and below 1 only with resize 'crop'"
        )


def _check_rows(augmentation: Augmentation, batch_size: int, rows: slice) -> None:
    repeats, count = augmentation.repeats, rows.stop - rows.start
    if batch_size % repeats or batch_size // repeats < 2 <= repeats:
        raise UserError(f"batch_size is {batch_size}: with {repeats} repeats it should be a multiple, at least double")
    if augmentation.mixes and count % 2:
        raise UserError(f"mixup and cutmix pair images: {count} a process cannot be, make it an even number")


def _read_options(threads: int) -> grain.ReadOptions:
    return grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
