"""A ViT on your own images: a folder or zip of SPLIT/CLASS/FILE, with the splits train and test.

    python experiments/train.py --config configs/folder_vit.py --workdir runs/mine --config.data.source=folder:PATH

For images in CLASS/FILE, without splits, add:
    --config.data.train="all[:80%]" --config.data.validation="all[80%:90%]" --config.data.test="all[90%:]"
Other sizes: configs/folder_vit.py:size=S/16,image_size=224. The augmentation is DeiT's (Touvron et al. 2020).
"""

from attnjax import config as config_lib
from attnjax import models


def get_config(size="Ti/16", image_size=128):
    config = config_lib.classification()
    config.model = models.fields("vit", size, drop_path=0.1)
    config.data.source = "folder:data"
    config.data.train, config.data.validation = "train[:90%]", "train[90%:]"
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
    return config
