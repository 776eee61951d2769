"""The fully connected 256-128-64 network on Fashion-MNIST (Xiao et al. 2017).

    python experiments/train.py --config configs/fashion_mlp.py --workdir runs/fashion_mlp
    python experiments/evaluate.py --workdir runs/fashion_mlp

Data: a folder with the four IDX files; Debian's package dataset-fashion-mnist installs them in the default `source`.
Expected: at least 0.895 accuracy on the 10,000 test images. Published for this shape: 0.900
(zalandoresearch/fashion-mnist README, an unverified submission).
"""

from attnjax import config as config_lib
from attnjax import models


def get_config():
    config = config_lib.classification()
    config.model = models.fields("mlp", dropout=0.1)
    config.data.source = "idx:/usr/share/datasets/fashion-mnist"
    config.data.train, config.data.validation = "train[:55000]", "train[55000:]"
    config.data.image_size, config.data.channels = (28, 28), 1
    config.data.augment.flip = True
    config.epochs = 60.0
    config.log_every = 200
    config.eval_every = 1000
    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup_steps = 500
    config.optimizer.weight_decay = 0.1
    return config
