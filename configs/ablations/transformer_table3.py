"""Table 3 of Vaswani et al. (2017), scaled down: which parts of the base Transformer matter, one change at a time?

    python experiments/sweep.py --config configs/ablations/transformer_table3.py --workdir runs/t3 --jobs 2 --evaluate

configs/numwords_transformer.py on 400 of its 20,000 numbers for 600 steps, so that a model can overfit: 15 rows with
three seeds each. A trial takes a minute on one CPU core; all of them take half an hour on two.

The base has width 128, MLP 256, 2 and 2 blocks, and 4 heads with keys and values of 32. The paper's has 512, 2048,
6 and 6, 8 and 64. The paper's figures are perplexity and BLEU on newstest2013, English to German; its base has 4.92
and 25.8:

    (A) heads           1: 5.29 24.9    4: 5.00 25.5    16: 4.91 25.8    32: 5.01 25.4
    (B) size of keys    16: 5.16 25.1   32: 5.01 25.4
    (C) blocks          2: 6.11 23.7    4: 5.19 25.3    8: 4.88 25.5
        width           256: 5.75 24.5  1024: 4.66 26.0
        width of MLP    1024: 5.12 25.4 4096: 4.75 26.2
    (D) dropout         0.0: 5.77 24.6  0.2: 4.95 25.5
        smoothing       0.0: 4.67 25.3  0.2: 5.47 25.7
    (E) learned positions               4.92 25.7
"""

from attnjax import sweeps
from configs import numwords_transformer


def get_config():
    config = numwords_transformer.get_config()
    config.data.train = "train[:400]"
    config.steps, config.eval_every = 600, 100
    config.optimizer.warmup_steps = 100
    return config


def depths(choices):
    return sweeps.zip(sweeps.values("model.encoder_depth", choices), sweeps.values("model.decoder_depth", choices))


def sweep():
    rows = sweeps.chain(
        [{}],
        sweeps.values("model.num_heads", [1, 16]),  # (A)
        sweeps.values("model.key_size", [8]),  # (B)
        depths([1, 3]),  # (C)
        sweeps.values("model.width", [64, 256]),
        sweeps.values("model.mlp_dim", [128, 512]),
        sweeps.values("model.dropout", [0.0, 0.2]),  # (D)
        sweeps.values("label_smoothing", [0.0, 0.2]),
        sweeps.values("model.positions", ["learned"]),  # (E)
    )
    return sweeps.product(rows, sweeps.seeds(3))
