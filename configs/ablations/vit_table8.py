"""Table 8 of Dosovitskiy et al. (2020), scaled down: how does a ViT know where a patch is?

    python experiments/sweep.py --config configs/ablations/vit_table8.py --workdir runs/table8 --jobs 2 --evaluate

configs/digits_vit.py with each kind of position in `attnjax.models.vit.POSITIONS`, on 4x4 patches, with three seeds.
A trial takes about 45 seconds on one CPU core; all 12 take 5 minutes on two.

The paper's figures, 5-shot accuracy of ViT-B/16 on ImageNet: none 0.61382, learned (1-D) 0.64206, learned_2d 0.64001,
relative 0.64032. The paper's relative positions differ from ours: see `attnjax.models.vit.POSITIONS`.
"""

from attnjax import sweeps
from attnjax.models.vit import POSITIONS
from configs import digits_vit


def get_config():
    return digits_vit.get_config()


def sweep():
    return sweeps.product(sweeps.values("model.position", POSITIONS), sweeps.seeds(3))
