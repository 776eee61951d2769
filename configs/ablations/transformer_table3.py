"""Table 3 of Vaswani et al. (2017), scaled down: what of the base Transformer matters, one thing at a time?

    python experiments/sweep.py --config configs/ablations/transformer_table3.py --workdir runs/transformer_table3 --jobs 2 --evaluate
"""

from pathlib import Path

from attnjax import config as config_lib
from attnjax import sweeps


def get_config():
    config = config_lib.load(str(Path(__file__).parent.parent / "numwords_transformer.py"))
    config.epochs = 2.0
    return config


def depths(choices):
    return sweeps.zip(sweeps.values("model.encoder_depth", choices), sweeps.values("model.decoder_depth", choices))


def sweep():
    rows = sweeps.chain(
        [{}],
        sweeps.values("model.num_heads", [1, 2, 8, 16]),  # (A)
        sweeps.values("model.key_size", [8, 16]),  # (B)
        depths([1, 3]),  # (C)
        sweeps.values("model.width", [64, 256]),
        sweeps.values("model.mlp_dim", [128, 512]),
        sweeps.values("model.dropout", [0.0, 0.2]),  # (D)
        sweeps.values("label_smoothing", [0.0, 0.2]),
        sweeps.values("model.positions", ["learned"]),  # (E)
    )
    return sweeps.product(rows, sweeps.seeds(3))
