"""A Swin of 0.4M parameters on Fashion-MNIST: 2, 2 and 2 blocks, width 32, windows of 7x7, patches of 2x2.

    python experiments/train.py --config configs/fashion_swin.py --workdir runs/fashion_swin
    python experiments/evaluate.py --workdir runs/fashion_swin

Data: a folder with the four IDX files; Debian's package dataset-fashion-mnist installs them in the default `source`.
Only the first stage shifts its windows: it has 14x14 tokens in four windows. Everything but the model and its learning
rate is as in `fashion_vit.py`. Test accuracy 0.9295 (seed 0; validation 0.9364) after 60 minutes on one CPU core.
Without the shift, or without positions: --config.model.shift=false, --config.model.position=none.
"""

from attnjax import models
from configs import fashion_vit


def get_config():
    config = fashion_vit.get_config()
    config.model = models.fields("swin", "28", drop_path=0.1)
    config.optimizer.learning_rate = 2e-3
    return config
