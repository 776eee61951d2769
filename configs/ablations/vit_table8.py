"""Table 8 of Dosovitskiy et al. (2020), scaled down: how does a ViT know where a patch is?

    python experiments/sweep.py --config configs/ablations/vit_table8.py --workdir runs/table8 --jobs 2 --evaluate

configs/digits_vit.py with each kind of position of `attnjax.models.vit.POSITIONS`, on 4x4 patches, in three seeds. A
trial takes about 45 seconds of one CPU core; all 12 of them 5 minutes of two.

The paper's figures, 5-shot accuracy of ViT-B/16 on ImageNet: none 0.61382, learned (1-D) 0.64206, learned_2d 0.64001,
relative 0.64032. Its relative positions are of another kind: see `attnjax.models.vit.GridAttention`.
"""

from attnjax import sweeps
from attnjax.models.vit import POSITIONS
from configs import digits_vit


def get_config():
    return digits_vit.get_config()


def sweep():
    return sweeps.product(sweeps.values("model.position", POSITIONS), sweeps.seeds(3))
