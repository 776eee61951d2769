"""GRU encoder-decoder with additive attention on Multi30k, German to English: what the Transformer replaced.

    python experiments/train.py --config configs/multi30k_rnn.py --workdir runs/multi30k_rnn
    python experiments/evaluate.py --workdir runs/multi30k_rnn

`:width=512,embedding=256` is the published size (bentrevett/pytorch-seq2seq: 20.5M parameters with its word
vocabularies, 28.22 BLEU by greedy search); the default is smaller, for CPUs. Data as in multi30k_transformer_tiny.py.
On test_2016_flickr: 39.89 lower-case sacreBLEU (seed 0, 11,127,920 parameters), after half an hour on one CPU core.
"""

from attnjax import config as config_lib
from attnjax import models


def get_config(width=256, embedding=256):
    config = config_lib.translation()
    config.model = models.fields("rnn", cell="gru", width=width, embedding=embedding, attention="additive", dropout=0.3)
    config.data.source = "text:data/multi30k/data/task1/raw"
    config.data.languages = ("de", "en")
    config.data.test = "test_2016_flickr"
    config.data.vocabulary.size = 6000
    config.data.vocabulary.joint = False
    config.data.vocabulary.lowercase = True
    config.data.batching.max_tokens = 2048
    config.data.batching.max_length = 64
    config.epochs = 10.0
    config.save_every = 100
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup_steps = 200
    config.optimizer.clip_norm = 1.0
    config.decoding.beam_size, config.decoding.early_stopping = 5, True  # as measured
    config.decoding.length_penalty, config.decoding.alpha = "average", 1.0
    config.bleu.lowercase = config.bleu.moses = True
    return config
