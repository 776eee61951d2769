"""ViT from scratch on ImageNet-1k or ImageNet-21k (Dosovitskiy et al. 2020, tables 3 and 5), any size.

    python experiments/prepare.py imagenet2012
    python experiments/train.py --config configs/paper/imagenet_vit.py:size=B/16 --workdir runs/imagenet_vit
    python experiments/train.py --config configs/paper/imagenet_vit.py:size=L/16,data=imagenet21k --workdir runs/l16_21k
    python experiments/convert.py B_16.npz --workdir runs/b16 \\
        --config configs/paper/imagenet_vit.py:size=B/16,image_size=384

The last command opens published weights. ImageNet-21k is read from a folder or zip of train/CLASS/FILE; 51,200 of its
images are held out. After training, continue with `imagenet_vit_finetune.py`.

Published, after fine-tuning at 384 pixels: from ImageNet-1k B/16 0.7791, B/32 0.7338, L/16 0.7653; from ImageNet-21k
B/16 0.8397, L/16 0.8515. Not run here. Cost of B/16 and L/16 in FLOPs, from the model's multiply-adds: on ImageNet-1k
4.0e19, 1.4e20, on ImageNet-21k 1.3e20, 4.7e20.
"""

from attnjax import config as config_lib
from attnjax import models

# data -> (epochs, peak learning rate, schedule, weight decay)
RECIPES = {"imagenet2012": (300.0, 3e-3, "cosine", 0.3), "imagenet21k": (90.0, 1e-3, "linear", 0.03)}


def get_config(size="B/16", image_size=224, data="imagenet2012"):
    config = config_lib.classification()
    config.model = models.fields("vit", size, dropout=0.1)
    if data == "imagenet2012":
        config.data.source = "tfds:imagenet2012"
        config.data.train, config.data.validation, config.data.test = "train[:99%]", "train[99%:]", "validation"
    else:
        config.data.source = "folder:data/imagenet21k"
        config.data.train, config.data.validation, config.data.test = "train[51200:]", "train[:51200]", "train[:51200]"
    config.data.image_size = (image_size, image_size)
    config.data.crop_fraction = 0.875
    config.data.augment.crop, config.data.augment.flip = "resized", True
    config.epochs, config.optimizer.learning_rate, config.optimizer.schedule, config.optimizer.weight_decay = RECIPES[
        data
    ]
    config.batch_size = 4096
    config.optimizer.warmup_steps = 10_000
    config.optimizer.clip_norm = 1.0
    return config
