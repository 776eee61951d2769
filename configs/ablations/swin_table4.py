"""Table 4 of Liu et al. (2021), scaled down: how much do shifted windows and relative positions help a Swin?

    python experiments/sweep.py --config configs/ablations/swin_table4.py --workdir runs/table4 --jobs 2 --evaluate

configs/fashion_swin.py on 20,000 images for ten epochs, 3,130 steps, with three seeds. A trial takes about four minutes
on one CPU core; all 15 take half an hour on two. The base has the shift and relative positions.

The paper's figures, top-1 accuracy of Swin-T on ImageNet after 300 epochs:

    shifted windows, relative positions    81.3
    no shift                               80.2
    positions: none                        80.1
               absolute                    80.5
               absolute and relative       81.3
"""

from attnjax import sweeps
from configs import fashion_swin


def get_config():
    config = fashion_swin.get_config()
    config.data.train = "train[:20000]"
    config.epochs = 10.0
    config.optimizer.warmup_steps = 100
    return config


def sweep():
    rows = sweeps.chain(
        [{}],
        sweeps.values("model.shift", [False]),
        sweeps.values("model.position", ["none", "absolute", "both"]),
    )
    return sweeps.product(rows, sweeps.seeds(3))
