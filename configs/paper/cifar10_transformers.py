"""A Swin of 7,073,188 parameters and a ViT of 2,697,610 on CIFAR-10, after github.com/aanna0701/SPT_LSA_ViT
(Lee et al. 2021).

    python experiments/prepare.py cifar10
    python experiments/train.py --config configs/paper/cifar10_transformers.py:model=swin --workdir runs/cifar10_swin

swin: three stages of 2, 6 and 4 blocks, width 96, windows of 4x4, patches of 2x2, absolute and relative positions.
vit: 9 blocks of width 192, 12 heads, patches of 4x4. The original has no biases in queries, keys and values:
2,692,426 parameters.

Taken from there: AdamW at 1e-3 with weight decay 0.05, 100 epochs of which 10 are warm-up, batches of 128 in which
every image occurs three times (an epoch is three passes), crop, flip, erasing, mixup or CutMix for half of the images,
label smoothing 0.1, stochastic depth 0.1. Different from there: RandAugment instead of CIFAR's AutoAugment, which we
lack; weight decay on kernels only; the best checkpoint is selected on 1,000 held-out images instead of the test images.

Published test accuracy: Swin 0.9446, ViT 0.9358. Not run here.
Cost in FLOPs, from the model's multiply-adds: 2.1e16, 1.7e16.
"""

from attnjax import config as config_lib
from attnjax import models

IMAGES = 49_000


VIT = dict(patch_size=4, width=192, depth=9, num_heads=12, mlp_dim=384, activation="gelu")


def get_config(model="swin"):
    config = config_lib.classification()
    fields = models.fields("swin", "cifar") if model == "swin" else models.fields(model, **VIT)
    config.model = models.fields(**{**fields, "drop_path": 0.1})
    config.data.source = "tfds:cifar10"
    config.data.train, config.data.validation = f"train[:{IMAGES}]", f"train[{IMAGES}:]"
    config.data.mean, config.data.std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    augment = config.data.augment
    augment.crop, augment.flip, augment.repeats = "pad", True, 3
    augment.randaugment_layers, augment.randaugment_magnitude = 2, 9.0
    augment.mixup, augment.cutmix, augment.mix_probability = 1.0, 1.0, 0.5
    augment.erase, augment.erase_fill = 0.25, "zero"
    config.label_smoothing = 0.1
    config.epochs = 100.0
    config.batch_size = 128
    config.optimizer.learning_rate = 1e-3
    config.optimizer.weight_decay = 0.05
    config.optimizer.warmup_steps = 10 * augment.repeats * IMAGES // config.batch_size
    return config
