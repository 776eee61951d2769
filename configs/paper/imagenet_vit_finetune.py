"""Fine-tuning a ViT on ImageNet-1k at 384 pixels (Dosovitskiy et al. 2020, table 4).

    python experiments/train.py --config configs/paper/imagenet_vit_finetune.py:size=B/16 --workdir runs/b16_384 \\
        --config.init_from=runs/b16_21k    # a run of imagenet_vit.py, or Google's B_16.npz

Published: from ImageNet-21k B/16 0.8397, B/32 0.8128, L/16 0.8515; Google's README has 0.8453, 0.8166 and 0.8447 with
its weights and no dropout. Not run here. Cost of these three in FLOPs, from the model's multiply-adds:
3.4e18, 8.0e17, 1.2e19. The paper tries the learning rates 0.003, 0.01, 0.03 and 0.06, as `sweep()` does.
"""

from attnjax import config as config_lib
from attnjax import models, sweeps


def get_config(size="B/16", image_size=384):
    config = config_lib.classification()
    config.model = models.fields("vit", size)
    config.data.source = "tfds:imagenet2012"
    config.data.train, config.data.validation, config.data.test = "train[:99%]", "train[99%:]", "validation"
    config.data.image_size = (image_size, image_size)
    config.data.augment.crop, config.data.augment.flip = "resized", True
    config.steps, config.eval_every = 20_000, 2_000
    config.batch_size = 512
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.03
    config.optimizer.warmup_steps = 500
    config.optimizer.clip_norm = 1.0
    return config


def sweep():
    return sweeps.values("optimizer.learning_rate", [0.003, 0.01, 0.03, 0.06])
