"""How long a sequence can an RNN, an LSTM, an LSTM with attention and a Transformer of equal size reverse?

    for MODEL in rnn lstm lstm_attention transformer; do
        python experiments/train.py --config configs/reverse.py:model=$MODEL --workdir runs/reverse/$MODEL
    done
    python experiments/figures.py --lengths docs/reach.png runs/reverse/{rnn,lstm,lstm_attention,transformer}

The data is our own TFDS data set: sequences of 2 to 40 symbols, drawn from 50. No test sequence is in the training
split. `--config.data.source=tfds:symbols/copy` copies instead of reversing. The four models share data, batches, steps
and optimizer, except for the learning rate. The three recurrent ones have one unidirectional layer. Without attention,
the decoder gets only the encoder's last state; with it, it attends by dot products (Luong et al. 2015).

Share of the 2,000 test sequences reversed without a mistake, greedy search, seed 0. The figure's CSV has it by length:

    rnn              236,437 parameters    0.649 (all up to 15 symbols, 0.41 of 26 to 30, 0.00 of 36 to 40)
    lstm             237,001               0.409 (0.75 of 11 to 15 symbols, 0.04 of 26 to 30, none of 36 to 40)
    lstm_attention   238,065               0.995 (all up to 20 symbols, 0.98 of 36 to 40)
    transformer      237,632               1.000 (all)

2,500 steps take 1.5 to 3.5 minutes each on one CPU core. The learning rates are the best on validation (exact match):
1e-3, 2e-3, 4e-3 for the rnn (0.546, 0.646, 0.533); 5e-3, 1e-2, 2e-2 for the lstm (0.291, 0.409, 0.335); 2e-3, 4e-3 for
the transformer (0.952, 1.000); for the lstm with attention only 5e-3 was tried (0.996).
"""

from attnjax import config as config_lib
from attnjax import models
from attnjax.errors import UserError, nearest

RECURRENT = {"embedding": 64, "layers": 1, "bidirectional": False, "attention": "none", "dropout": 0.0}
# model -> (name in the registry, fields, learning rate)
MODELS = {
    "rnn": ("rnn", RECURRENT | {"cell": "rnn", "width": 292}, 2e-3),
    "lstm": ("rnn", RECURRENT | {"cell": "lstm", "width": 136}, 1e-2),
    "lstm_attention": ("rnn", RECURRENT | {"cell": "lstm", "width": 120, "attention": "dot"}, 5e-3),
    "transformer": (
        "transformer",
        {"width": 64, "mlp_dim": 256, "num_heads": 4, "encoder_depth": 2, "decoder_depth": 2, "dropout": 0.0},
        4e-3,
    ),
}


def get_config(model="transformer"):
    if model not in MODELS:
        raise UserError(f"unknown model '{model}': {nearest(model, MODELS)}")
    name, fields, learning_rate = MODELS[model]
    config = config_lib.translation()
    config.model = models.fields(name, **fields)
    config.data.source = "tfds:symbols/reverse"
    config.data.languages = ("input", "output")
    config.data.validation = "validation"
    # Each symbol is one subword: pad, bos, eos, unk, 50 symbols, and the 10 digits and the space that spell them.
    config.data.vocabulary.size = 65
    config.data.batching.max_tokens = 2048
    config.data.batching.max_length = 41  # 40 symbols and eos
    config.data.batching.shapes = 4
    config.decoding.beam_size = 1
    config.decoding.length_penalty = "none"
    config.decoding.extra_length = 8
    config.best_metric = "exact_match"
    config.steps = 2500
    config.eval_every = 1250
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = learning_rate
    config.optimizer.warmup_steps = 200
    config.optimizer.b2 = 0.98
    config.optimizer.clip_norm = 1.0
    return config
