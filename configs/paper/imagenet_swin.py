"""Swin T, S and B on ImageNet-1k (Liu et al. 2021, section 4.1 and appendix A2.1).

    python experiments/prepare.py imagenet2012
    python experiments/train.py --config configs/paper/imagenet_swin.py:size=T --workdir runs/swin_t

Published top-1, table 1: T 0.813, S 0.830, B 0.835. Not run here.
Cost in FLOPs, from the model's multiply-adds: 1.0e19, 2.0e19, 3.5e19.
Different from the paper: warm-up from 0 instead of 5e-7, and 1% of the training images held out to select the
checkpoint. The gradient norm is clipped at 5, as in the authors' released configs; the paper says 1.
"""

from attnjax import config as config_lib
from attnjax import models

DROP_PATH = {"T": 0.2, "S": 0.3, "B": 0.5}
EPOCH = 1_281_167 * 99 // 100 // 1024  # steps


def get_config(size="T"):
    config = config_lib.classification()
    config.model = models.fields("swin", size, drop_path=DROP_PATH[size])
    config.data.source = "tfds:imagenet2012"
    config.data.train, config.data.validation, config.data.test = "train[:99%]", "train[99%:]", "validation"
    config.data.image_size = (224, 224)
    config.data.mean, config.data.std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    config.data.crop_fraction, config.data.interpolation = 0.875, "bicubic"
    augment = config.data.augment
    augment.crop, augment.flip, augment.color_jitter = "resized", True, 0.4
    augment.randaugment_layers, augment.erase = 2, 0.25
    augment.mixup, augment.cutmix = 0.8, 1.0
    config.label_smoothing = 0.1
    config.epochs = 300.0
    config.batch_size = 1024
    config.optimizer.learning_rate = 1e-3
    config.optimizer.end_learning_rate = 1e-5
    config.optimizer.warmup_steps = 20 * EPOCH
    config.optimizer.weight_decay = 0.05
    config.optimizer.clip_norm = 5.0
    return config
