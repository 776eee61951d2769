"""Data: images, parallel text and captions, from files or TFDS to batches of NumPy arrays."""

# Everything below: until tasks/ uses the new API.

from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from attnjax.data import captions as caption_sources
from attnjax.data.captions import CaptionOptions, CaptionSource
from attnjax.data.images import format as image_format
from attnjax.data.images import pipeline
from attnjax.data.images.augment import Augmentation
from attnjax.data.images.format import ImageFormat
from attnjax.data.images.sources import ImageSource, open_source
from attnjax.data.shard import Shard
from attnjax.data.text import pipeline as text_pipeline

_FORMAT = ("image_size", "channels", "mean", "std", "resize", "interpolation", "crop_fraction")


def open_split(config: ConfigDict, split: str) -> ImageSource:
    data = config.data
    return open_source(
        data.source, split, data_dir=data.data_dir, channels=data.channels, skip_corrupt=data.skip_corrupt
    )


def train_iterator(config: ConfigDict, source: ImageSource):
    augmentation = Augmentation(**config.data.augment)
    size, seed = config.batch_size, config.seed
    return pipeline.train_iterator(source, _format(config), augmentation, batch_size=size, seed=seed, shard=_shard())


def eval_batches(config: ConfigDict, source: ImageSource):
    return pipeline.eval_batches(source, _format(config), batch_size=config.eval_batch_size, shard=_shard())


def open_captions(config: ConfigDict, split: str) -> CaptionSource:
    names = ("languages", "images", "image_lines", "data_dir", "channels", "skip_corrupt", "skip_blank")
    options = CaptionOptions(**{name: config.data[name] for name in names})
    _format(config)
    return caption_sources.open_captions(config.data.source, split, options)


def training_images(config: ConfigDict, source: ImageSource, index: np.ndarray) -> text_pipeline.Attach:
    augmentation = Augmentation(**config.data.augment)
    return caption_sources.training_images(source, index, _format(config), augmentation)


def eval_images(config: ConfigDict, source: ImageSource, indices: np.ndarray) -> np.ndarray:
    return pipeline.eval_batch(source, indices, _format(config))["image"]


def read_image(config: ConfigDict, path: Path) -> np.ndarray:
    return image_format.read_image(path, _format(config))


def fingerprint(config: ConfigDict, sources: dict) -> dict[str, str]:
    """Returns field -> value of what determines the batches of a training; `processes` is only for the reader."""
    found = {"seed": str(config.seed), "processes": str(jax.process_count())}
    for split, source in sources.items():
        found[split] = f"{config.data[split]} of {config.data.source}, {len(source):,} examples"
        found[f"{split} content"] = source.content()
    if "image_size" in config.data:
        names = ("image_size", "mean", "std", "resize", "interpolation")
        found["transforms"] = str({**{name: config.data[name] for name in names}, **config.data.augment})
    return found


def _format(config):
    return ImageFormat(**{name: config.data[name] for name in _FORMAT})


def _shard():
    return Shard(jax.process_index(), jax.process_count())
