"""ResNet on ImageNet-1k (He et al. 2015, section 3.4): 50 layers, or 18, 34, 101, 152.

    python experiments/prepare.py imagenet2012
    python experiments/train.py --config configs/paper/imagenet_resnet.py:size=50 --workdir runs/resnet50

Published single-crop top-1, torchvision's first weights of this recipe: 18 layers 0.698, 34 0.733, 50 0.762, 101 0.774,
152 0.783. Not run here. Cost in FLOPs, from the model's multiply-adds: 1.2e18, 2.5e18, 2.8e18, 5.3e18, 7.9e18.
Different from torchvision: norms and biases have no weight decay, and 1% of the training images are held out to select
the checkpoint.
"""

from attnjax import config as config_lib
from attnjax import models

EPOCH = 1_281_167 * 99 // 100 // 256  # steps


def get_config(size="50"):
    config = config_lib.classification()
    config.model = models.fields("resnet", size)
    config.data.source = "tfds:imagenet2012"
    config.data.train, config.data.validation, config.data.test = "train[:99%]", "train[99%:]", "validation"
    config.data.image_size = (224, 224)
    config.data.mean, config.data.std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    config.data.crop_fraction = 0.875
    config.data.augment.crop, config.data.augment.flip = "resized", True
    config.epochs = 90.0
    config.batch_size = 256
    config.optimizer.name, config.optimizer.learning_rate, config.optimizer.weight_decay = "sgd", 0.1, 1e-4
    config.optimizer.schedule, config.optimizer.boundaries = "step", (30 * EPOCH, 60 * EPOCH)
    return config
