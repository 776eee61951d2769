"""ResNet for CIFAR-10 (He et al. 2015, section 4.2): cifar20, 32, 44, 56 or 110.

    python experiments/prepare.py cifar10
    python experiments/train.py --config configs/paper/cifar10_resnet.py:size=cifar20 --workdir runs/cifar10_resnet20

Published test accuracy: 20 layers 0.9125, 32 0.9249, 44 0.9283, 56 0.9303, 110 0.9357. Not run here.
Cost in FLOPs, from the model's multiply-adds: 2.0e15, 3.4e15, 4.8e15, 6.2e15, 1.2e16.
With 110 layers, the first 400 steps are a linear warm-up; the paper uses a rate of 0.01 until the training error is
below 80%.
"""

from attnjax import config as config_lib
from attnjax import models


def get_config(size="cifar20"):
    config = config_lib.classification()
    config.model = models.fields("resnet", size)
    config.data.source = "tfds:cifar10"
    config.data.train, config.data.validation = "train[:45000]", "train[45000:]"
    config.data.mean, config.data.std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    config.data.augment.crop, config.data.augment.flip = "pad", True
    config.steps = 64_000
    config.precision = "float32"  # as the paper
    config.optimizer.name, config.optimizer.learning_rate, config.optimizer.weight_decay = "sgd", 0.1, 1e-4
    config.optimizer.schedule, config.optimizer.boundaries = "step", (32_000, 48_000)
    config.optimizer.warmup_steps = 400 if size == "cifar110" else 0
    return config
