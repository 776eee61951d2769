"""Table 8 of Dosovitskiy et al. (2020), position embeddings, on `digits_vit`: two CPU cores do it.

    python experiments/sweep.py --config configs/ablations/vit_table8.py --workdir sweeps/table8 --jobs 2 --evaluate
    python experiments/report.py sweeps/table8

Relative positions are Swin's biases here, the paper's are products with the query. The paper's are of ViT-B/16, its
5-shot accuracy on ImageNet: none 0.61382, learned 0.64206, two-dimensional 0.64001, relative 0.64032.
"""

from pathlib import Path

from attnjax import config as config_lib
from attnjax import sweeps


def get_config():
    return config_lib.load(str(Path(__file__).parent.parent / "digits_vit.py"))


def sweep():
    return sweeps.product(
        sweeps.values("model.position", ["learned", "none", "learned_2d", "relative"]), sweeps.seeds(3)
    )
