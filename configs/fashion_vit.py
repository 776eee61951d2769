"""A ViT of 0.2M parameters on Fashion-MNIST: 6 layers, width 64, 4 heads, patch 4.

    python experiments/train.py --config configs/fashion_vit.py --workdir runs/fashion_vit
    python experiments/evaluate.py --workdir runs/fashion_vit

Data: a folder with the four IDX files; Debian's package dataset-fashion-mnist puts them where `source` says.
Published for this shape with a class token, after 200 epochs: 0.923 (s-chh/PyTorch-Scratch-Vision-Transformer-ViT);
for that length: --config.epochs=200. These 32 epochs have not been run to their end yet.
"""

from attnjax import config as config_lib
from attnjax import models


def get_config():
    config = config_lib.classification()
    config.model = models.fields(
        "vit", patch_size=4, width=64, depth=6, num_heads=4, mlp_dim=128, pool="average", position_std=0.5
    )
    config.data.source = "idx:/usr/share/datasets/fashion-mnist"
    config.data.train, config.data.validation = "train[:55000]", "train[55000:]"
    config.data.image_size, config.data.channels = (28, 28), 1
    config.data.augment.flip = True
    config.data.augment.crop, config.data.augment.pad = "pad", 1
    config.epochs = 32.0
    config.batch_size = 64
    config.log_every = 100
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 500
    config.optimizer.weight_decay = 0.05
    config.optimizer.clip_norm = 1.0
    return config
