"""The rows of table 3 of Vaswani et al. (2017), on `numwords_transformer` at half of its training: two CPU cores do it.

    python experiments/sweep.py --config configs/ablations/transformer_table3.py --workdir sweeps/table3 --evaluate \\
        --jobs 2
    python experiments/report.py sweeps/table3

The base has 2+2 layers, width 128, 4 heads (d_k = d_v = 32), d_ff 256, dropout 0.1 and label smoothing 0.1, and 405
steps of 2,048 tokens; each row changes what the paper's does, scaled down with the model. The paper's are of WMT14
en-de (newstest2013, BLEU; its base 25.8): (A) 1 head 24.9, 16 heads 25.8, 32 heads 25.4; (B) d_k 16 for 64 25.1; (C) 2
layers for 6 23.7, 4 25.3, 8 25.5, width 256 for 512 24.5, d_ff 1,024 for 2,048 25.4; (D) dropout 0 24.6, 0.2 25.5,
label smoothing 0 25.3, 0.2 25.7; (E) learned positions 25.7.
"""

from pathlib import Path

from attnjax import config as config_lib
from attnjax import sweeps


def get_config():
    config = config_lib.load(str(Path(__file__).parent.parent / "numwords_transformer.py"))
    config.epochs = 3.0
    return config


def sweep():
    rows = sweeps.chain(
        [{}],
        sweeps.values("model.num_heads", [1, 16]),  # (A)
        sweeps.values("model.key_size", [8]),  # (B)
        sweeps.zip(sweeps.values("model.encoder_depth", [1, 4]), sweeps.values("model.decoder_depth", [1, 4])),  # (C)
        sweeps.values("model.width", [64]),
        sweeps.values("model.mlp_dim", [128]),
        sweeps.values("model.dropout", [0.0, 0.2]),  # (D)
        sweeps.values("label_smoothing", [0.0, 0.2]),
        sweeps.values("model.positions", ["learned"]),  # (E)
    )
    return sweeps.product(rows, sweeps.seeds(3))
