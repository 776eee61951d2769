"""DeiT on ImageNet-1k without distillation (Touvron et al. 2020, table 9): S/16, or Ti/16 and B/16.

    python experiments/prepare.py imagenet2012
    python experiments/train.py --config configs/paper/imagenet_deit.py:size=S/16 --workdir runs/deit_s

Published top-1: Ti 0.722, S 0.799, B 0.818. Not run here. The paper's cost is 2 to 3 days on 4 to 8 GPUs.
Cost of Ti, S and B in FLOPs, from the model's multiply-adds: 2.9e18, 1.1e19, 4.1e19.
Different from the paper: warm-up from 0 instead of 1e-6, weight decay on kernels only, and 1% of the training images
held out to select the checkpoint.
"""

from attnjax import config as config_lib
from attnjax import models

IMAGES = 1_281_167


def get_config(size="S/16"):
    config = config_lib.classification()
    config.model = models.fields("vit", size, drop_path=0.1, activation="gelu")
    config.data.source = "tfds:imagenet2012"
    config.data.train, config.data.validation, config.data.test = "train[:99%]", "train[99%:]", "validation"
    config.data.image_size = (224, 224)
    config.data.mean, config.data.std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    config.data.crop_fraction, config.data.interpolation = 0.875, "bicubic"
    augment = config.data.augment
    augment.crop, augment.flip, augment.color_jitter, augment.repeats = "resized", True, 0.3, 3
    augment.randaugment_layers, augment.erase = 2, 0.25
    augment.mixup, augment.cutmix = 0.8, 1.0
    config.label_smoothing = 0.1
    config.ema_decay = 0.99996
    config.batch_size = 1024
    config.steps = 300 * IMAGES // config.batch_size  # the paper counts copies of an image towards an epoch
    config.eval_every = 5 * IMAGES // config.batch_size
    config.optimizer.learning_rate = 5e-4 * config.batch_size / 512
    config.optimizer.end_learning_rate = 1e-5
    config.optimizer.warmup_steps = 5 * IMAGES // config.batch_size
    config.optimizer.weight_decay = 0.05
    return config
