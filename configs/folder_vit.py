"""A ViT on your own images: a folder or zip of SPLIT/CLASS/FILE, with the splits train and test, or of CLASS/FILE.

    python experiments/train.py --config configs/folder_vit.py --workdir runs/mine --config.data.source=folder:PATH

A split called validation, valid, val or dev selects the best checkpoint; without one, a tenth of the training images
does. CLASS/FILE without splits is divided 80 : 10 : 10. `data.train`, `data.validation` and `data.test` override this.

Below 20,000 training images it is a shallow ViT at 64 pixels with light augmentation, made for ten minutes on two CPU
cores. With more images, or a size given, it is a larger one with the augmentation of DeiT (Touvron et al. 2020), which
pays off after hundreds of epochs, on a GPU: configs/folder_vit.py:size=S/16,image_size=224. The expected time is said
first. For photographs, published weights are better than either: see docs/weights.md.
"""

import math
import os

from attnjax import config as config_lib
from attnjax import models
from attnjax.data.images.folders import VALIDATION_NAMES
from attnjax.data.images.sources import open_source, split_names

FEW = 20_000  # training images below which the augmentation of DeiT does not pay off
SEEN = 120_000  # images that the shallow ViT sees in about ten minutes
SECONDS = {"few": 0.005, "many": 0.02}  # per image on two CPU cores: shallow ViT, Ti/16 at 128 pixels


def get_config(source="folder:data", size="", image_size=0):
    config = config_lib.classification()
    config.data.source = source
    images = choose_splits(config.data)
    if size or image_size or not images:
        for_many_images(config, size or "Ti/16", image_size or 128)
        return config
    if images < FEW:
        for_few_images(config, images)
    else:
        for_many_images(config, "Ti/16", 128)
    minutes = math.ceil(images * config.epochs * SECONDS["few" if images < FEW else "many"] / 60)
    print(f"{images:,} training images, {config.epochs:g} epochs: about {minutes} min on two CPU cores")
    return config


def choose_splits(data):
    """Sets the splits by those that the folder has, and returns the number of training images, 0 for no folder."""
    there = os.path.exists(os.path.expanduser(data.source.removeprefix("folder:")))
    names = split_names(data.source) if data.source.startswith("folder:") and there else ()
    if names == ("all",):
        data.train, data.validation, data.test = "all[:80%]", "all[80%:90%]", "all[90%:]"
    elif given := [name for name in VALIDATION_NAMES if name in names]:
        data.train, data.validation = "train", given[0]
    else:
        data.train, data.validation = "train[:90%]", "train[90%:]"
    return len(open_source(data.source, data.train)) if names else 0


def for_few_images(config, images):
    config.model = models.fields("vit", patch_size=8, width=128, depth=4, num_heads=4, mlp_dim=256, pool="average")
    config.data.image_size = (64, 64)
    config.data.augment.crop, config.data.augment.scale = "resized", (0.5, 1.0)
    config.data.augment.flip = True
    config.label_smoothing = 0.1
    config.batch_size = 64
    config.epochs = float(min(100, max(10, round(SEEN / images))))
    steps = config.epochs * math.ceil(images / config.batch_size)
    config.eval_every = config.log_every = math.ceil(steps / 25)
    config.optimizer.learning_rate = 1e-3
    config.optimizer.weight_decay = 0.05
    config.optimizer.clip_norm = 1.0


def for_many_images(config, size, image_size):
    config.model = models.fields("vit", size, drop_path=0.1)
    config.data.image_size = (image_size, image_size)
    augment = config.data.augment
    augment.crop, augment.flip, augment.color_jitter = "resized", True, 0.3
    augment.randaugment_layers, augment.erase = 2, 0.25
    augment.mixup, augment.cutmix = 0.8, 1.0
    config.label_smoothing = 0.1
    config.epochs = 100.0
    config.optimizer.learning_rate = 5e-4
    config.optimizer.weight_decay = 0.05
    config.optimizer.clip_norm = 1.0
