"""Where batches come from: sources of images, augmentation, and the pipeline over them, as a config's `data` says."""

from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from attnjax.data import pipeline
from attnjax.data.decode import DAMAGE, decode_image
from attnjax.data.images import Augmentation, fit, normalise
from attnjax.data.sources import ImageSource, open_source
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
        source, batch_size=config.batch_size, augmentation=augmentation, seed=config.seed, **_images(config)
    )


def eval_batches(config: ConfigDict, source: ImageSource):
    """Returns an iterable over this process's batches of every example once."""
    crop_fraction = config.data.crop_fraction
    return pipeline.eval_batches(
        source, batch_size=config.eval_batch_size, crop_fraction=crop_fraction, **_images(config)
    )


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


def _images(config):
    names = ("image_size", "mean", "std", "resize", "interpolation")
    shards = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    return {name: config.data[name] for name in names} | shards
