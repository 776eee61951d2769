"""Where batches come from: sources of images, augmentation, and the pipeline over them, as a config's `data` says."""

from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from attnjax.data import captions as caption_sources
from attnjax.data.captions import CaptionSource
from attnjax.data.images import pipeline
from attnjax.data.images.augment import Augmentation, fit, normalise
from attnjax.data.images.decode import DAMAGE, decode_image
from attnjax.data.images.sources import ImageSource, check_channels, open_source
from attnjax.data.text import pipeline as text_pipeline
from attnjax.errors import UserError


def open_split(config: ConfigDict, split: str) -> ImageSource:
    """Returns the images of a split, like "train[:90%]", of a config's source."""
    data = config.data
    return open_source(
        data.source, split, data_dir=data.data_dir, channels=data.channels, skip_corrupt=data.skip_corrupt
    )


def train_iterator(config: ConfigDict, source: ImageSource):
    """Returns this process's endless iterator over shuffled, augmented batches; it can be checkpointed."""
    augmentation = Augmentation(**config.data.augment)
    return pipeline.train_iterator(
        source, batch_size=config.batch_size, augmentation=augmentation, seed=config.seed, **_images(config), **_shard()
    )


def eval_batches(config: ConfigDict, source: ImageSource):
    """Returns an iterable over this process's batches of every example once."""
    crop_fraction = config.data.crop_fraction
    return pipeline.eval_batches(
        source, batch_size=config.eval_batch_size, crop_fraction=crop_fraction, **_images(config), **_shard()
    )


def open_captions(config: ConfigDict, split: str) -> CaptionSource:
    """Returns the images with texts of a split of a captioning config's source."""
    data, names = config.data, ("images", "image_lines", "data_dir", "channels", "skip_corrupt", "skip_blank")
    if len(data.languages) != 2:
        raise UserError(f"data.languages={tuple(data.languages)}: it should be two, like ('image', 'en')")
    check_channels(data.channels)
    pipeline.check_images(data.channels, **_images(config), crop_fraction=data.crop_fraction)
    return caption_sources.open_captions(
        data.source, split, languages=tuple(data.languages), **{name: data[name] for name in names}
    )


def training_images(config: ConfigDict, source: ImageSource, index: np.ndarray) -> text_pipeline.Attach:
    """Returns what attaches augmented images to batches of pairs; pair i has the image `index[i]`."""
    augmentation = Augmentation(**config.data.augment)
    if augmentation.mixes or augmentation.repeats > 1:
        raise UserError("mixup, cutmix and repeats are for classes; a text cannot be mixed")
    options = _images(config)

    def attach(pairs, rows, rng):
        images = np.where(pairs < 0, -1, index[pairs])
        return {"image": pipeline.training_batch(source, images, rows, rng, augmentation, **options)["image"]}

    return attach


def eval_images(config: ConfigDict, source: ImageSource, indices: np.ndarray) -> np.ndarray:
    """Returns images as an evaluation shows them to the model, (B, H, W, C) float32; zeros where the index is -1."""
    return pipeline.eval_batch(source, indices, crop_fraction=config.data.crop_fraction, **_images(config))["image"]


def read_image(config: ConfigDict, path: Path) -> np.ndarray:
    """Returns an image file as an evaluation would show it to the model, (H, W, C) float32; UserError if unreadable."""
    data = config.data
    try:
        image = decode_image(path.read_bytes(), data.channels)
    except FileNotFoundError:
        raise UserError(f"no image file '{path}'") from None
    except DAMAGE as error:
        raise UserError(f"cannot read image {path}: {error}") from error
    image = fit(image, tuple(data.image_size), data.resize, data.interpolation, data.crop_fraction)
    return normalise(image, data.mean, data.std)


def fingerprint(config: ConfigDict, sources: dict) -> dict[str, str]:
    """Returns field -> value of what decides which batches a training reads of these open splits.

    `processes` is there to be read: any number of them shares the same batches.
    """
    found = {"seed": str(config.seed), "processes": str(jax.process_count())}
    for split, source in sources.items():
        found[split] = f"{config.data[split]} of {config.data.source}, {len(source):,} examples"
        found[f"{split} content"] = source.content()
    if "image_size" in config.data:
        found["transforms"] = str({**_images(config), **config.data.augment})
    return found


def _images(config):
    return {name: config.data[name] for name in ("image_size", "mean", "std", "resize", "interpolation")}


def _shard():
    return {"process_index": jax.process_index(), "process_count": jax.process_count()}
