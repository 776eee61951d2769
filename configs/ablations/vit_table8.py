"""Table 8 of Dosovitskiy et al. (2020), scaled down: how does a ViT know where a patch is?

    python experiments/sweep.py --config configs/ablations/vit_table8.py --workdir runs/vit_table8 --jobs 2 --evaluate

configs/digits_vit.py with each of `attnjax.models.vit.POSITIONS` and three seeds, on 4x4 patches of 8x8 pixels.
"""

from pathlib import Path

from attnjax import config as config_lib
from attnjax import sweeps
from attnjax.models.vit import POSITIONS


def get_config():
    return config_lib.load(str(Path(__file__).parent.parent / "digits_vit.py"))


def sweep():
    return sweeps.product(sweeps.values("model.position", POSITIONS), sweeps.seeds(3))
