"""Table 4 of Liu et al. (2021), shifts and positions, on `fashion_swin` for a short time: two CPU cores do it.

    python experiments/sweep.py --config configs/ablations/swin_table4.py --workdir sweeps/table4 --jobs 2 \\
        --evaluate latest
    python experiments/report.py sweeps/table4

626 steps on 20,000 images of Fashion-MNIST, the last checkpoint on the 10,000 test images. The paper's are Swin-T's
after 300 epochs of ImageNet-1k, top-1: shifted windows with relative positions 81.3, without the shift 80.2; no
positions 80.1, absolute 80.5, absolute and relative 81.3.
"""

from pathlib import Path

from attnjax import config as config_lib
from attnjax import sweeps


def get_config():
    config = config_lib.load(str(Path(__file__).parent.parent / "fashion_swin.py"))
    config.data.train = "train[:20000]"
    config.epochs = 2.0
    config.optimizer.warmup_steps = 100
    return config


def sweep():
    rows = sweeps.chain(
        [{}],
        sweeps.values("model.shift", [False]),
        sweeps.values("model.position", ["none", "absolute", "both"]),
    )
    return sweeps.product(rows, sweeps.seeds(3))
