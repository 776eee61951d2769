"""A CrossViT of 0.5M parameters on Fashion-MNIST: branches of patches 4x4 and 7x7, widths 48 and 96, two stages.

    python experiments/train.py --config configs/fashion_crossvit.py --workdir runs/fashion_crossvit
    python experiments/evaluate.py --workdir runs/fashion_crossvit

Data: a folder with the four IDX files; Debian's package dataset-fashion-mnist puts them where `source` says.
A stage is one block on 49 patches, two on 16, and the exchange. Data and optimizer as in `fashion_vit.py`. Not run yet.
"""

from attnjax import config as config_lib
from attnjax import models


def get_config():
    config = config_lib.classification()
    config.model = models.fields("crossvit", "mini-28", position_std=0.5, drop_path=0.1)
    config.data.source = "idx:/usr/share/datasets/fashion-mnist"
    config.data.train, config.data.validation = "train[:55000]", "train[55000:]"
    config.data.image_size, config.data.channels = (28, 28), 1
    config.data.augment.flip = True
    config.data.augment.crop, config.data.augment.pad = "pad", 1
    config.epochs = 40.0
    config.batch_size = 64
    config.log_every = 100
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 500
    config.optimizer.weight_decay = 0.05
    config.optimizer.clip_norm = 1.0
    return config
