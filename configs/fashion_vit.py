"""A ViT of 0.2M parameters on Fashion-MNIST: 3 layers, width 96, 3 heads, patch 4.

    python experiments/train.py --config configs/fashion_vit.py --workdir runs/fashion_vit
    python experiments/evaluate.py --workdir runs/fashion_vit

Data: a folder with the four IDX files; Debian's package dataset-fashion-mnist installs them in the default `source`.
Test accuracy 0.9162 after 40 epochs (seed 0; validation 0.9196 selected the checkpoint), half an hour on one CPU core.
Published for a ViT of this size, with 6 layers of width 64 and a class token, after 200 epochs: 0.923
(s-chh/PyTorch-Scratch-Vision-Transformer-ViT).
"""

from attnjax import config as config_lib
from attnjax import models


def get_config():
    config = config_lib.classification()
    config.model = models.fields(
        "vit", patch_size=4, width=96, depth=3, num_heads=3, mlp_dim=192, pool="average", position_std=0.5
    )
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
