"""ViT on ImageNet-1k from scratch (Dosovitskiy et al. 2020, table 3), any size; also the shape of published weights.

    python experiments/prepare.py imagenet2012
    python experiments/train.py --config configs/imagenet_vit.py:size=B/16 --workdir runs/imagenet_vit
    python experiments/convert.py B_16.npz --config configs/imagenet_vit.py:size=B/16,image_size=384 --workdir runs/b16

Published, after 300 epochs and fine-tuning at 384: B/16 0.779, B/32 0.734, L/16 0.765. Not run here.
"""

from attnjax import config as config_lib
from attnjax import models


def get_config(size="B/16", image_size=224):
    config = config_lib.classification()
    config.model = models.fields("vit", size, dropout=0.1)
    config.data.source = "tfds:imagenet2012"
    config.data.train, config.data.validation, config.data.test = "train[:99%]", "train[99%:]", "validation"
    config.data.image_size = (image_size, image_size)
    config.data.crop_fraction = 0.875
    config.data.augment.crop, config.data.augment.flip = "resized", True
    config.epochs = 300.0
    config.batch_size = 4096
    config.optimizer.learning_rate = 3e-3
    config.optimizer.warmup_steps = 10_000
    config.optimizer.weight_decay = 0.3
    config.optimizer.clip_norm = 1.0
    return config
