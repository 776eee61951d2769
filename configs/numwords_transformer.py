"""A small Transformer that translates spelled-out numbers from English to German, which swaps tens and units.

    python experiments/train.py --config configs/numwords_transformer.py --workdir runs/numwords
    python experiments/evaluate.py --workdir runs/numwords
    echo "four thousand, two hundred and seventeen" | python experiments/translate.py --workdir runs/numwords

The data is our own TFDS data set: it needs no network, and no number of the test split is in the training split.
Expected: all 1,000 test numbers exactly right (seed 0), after two and a half minutes on one CPU core. BLEU says nothing
here: most of these translations are one long word, and BLEU counts sequences of four.
"""

from attnjax import config as config_lib
from attnjax import models


def get_config():
    config = config_lib.translation()
    config.model = models.fields("transformer", "tiny", encoder_depth=2, decoder_depth=2, dropout=0.1)
    config.data.source = "tfds:numwords"
    config.data.validation = "validation"
    config.data.vocabulary.size = 200
    config.data.batching.max_tokens = 2048
    config.data.batching.max_length = 64
    config.data.batching.shapes = 4
    config.best_metric = "exact_match"
    config.epochs = 6.0
    config.label_smoothing = 0.1
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 3e-3
    config.optimizer.warmup_steps = 200
    config.optimizer.b2, config.optimizer.epsilon = 0.98, 1e-9
    return config
