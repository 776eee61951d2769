"""A CrossViT of 0.5M parameters on Fashion-MNIST: branches with patches 4x4 and 7x7, widths 48 and 96, two stages.

    python experiments/train.py --config configs/fashion_crossvit.py --workdir runs/fashion_crossvit
    python experiments/evaluate.py --workdir runs/fashion_crossvit

Data: a folder with the four IDX files; Debian's package dataset-fashion-mnist installs them in the default `source`.
A stage is one block on 49 patches, two blocks on 16, and the cross-attention between them. Everything but the model is
as in `fashion_vit.py`. Test accuracy 0.9218 (seed 0; validation 0.9200) after 28 minutes on one CPU core.
"""

from attnjax import models
from configs import fashion_vit


def get_config():
    config = fashion_vit.get_config()
    config.model = models.fields("crossvit", "mini-28", position_std=0.5, drop_path=0.1)
    return config
