"""ResNet-8, the smallest of He et al.'s (2015) CIFAR family (75,002 parameters), on Fashion-MNIST.

    python experiments/train.py --config configs/fashion_cnn.py --workdir runs/fashion_cnn
    python experiments/evaluate.py --workdir runs/fashion_cnn

Data: a folder with the four IDX files; Debian's package dataset-fashion-mnist installs them in the default `source`.
Expected: at least 0.92 accuracy on the 10,000 test images. Published for two convolutions and under 100k parameters:
0.925 (zalandoresearch/fashion-mnist README, an unverified submission).
"""

from attnjax import config as config_lib
from attnjax import models


def get_config():
    config = config_lib.classification()
    config.model = models.fields("resnet", size="cifar8")
    config.data.source = "idx:/usr/share/datasets/fashion-mnist"
    config.data.train, config.data.validation = "train[:55000]", "train[55000:]"
    config.data.image_size, config.data.channels = (28, 28), 1
    config.data.augment.flip = True
    config.data.augment.crop, config.data.augment.pad = "pad", 2
    config.epochs = 20.0
    config.log_every = 100
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.1
    config.optimizer.nesterov = True
    config.optimizer.warmup_steps = 200
    config.optimizer.weight_decay = 5e-4
    return config
