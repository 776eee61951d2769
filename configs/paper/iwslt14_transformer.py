"""A small Transformer on IWSLT14 German to English, with fairseq's recipe (its examples/translation/README.md).

    bash prepare-iwslt14.sh    # fairseq's; its folder iwslt14.tokenized.de-en/tmp has train, valid and test in words
    python experiments/train.py --config configs/paper/iwslt14_transformer.py --workdir runs/iwslt14 \\
        --config.data.source=text:iwslt14.tokenized.de-en/tmp
    python experiments/evaluate.py --workdir runs/iwslt14 --checkpoint average

Published, on tokenised lower-case text: BLEU 35.07 after 100 epochs (Deep-Spark/DeepSparkHub), 35.64 +- 0.23 over seeds
(Transformer-Clinic). Not run here. Cost: about 8e16 FLOPs, at 25 subwords per sentence.
Different from fairseq: subwords are learnt by sentencepiece, 8,000 per language (fairseq has 8,848 and 6,632, from
10,000 joint merges).
"""

from attnjax import config as config_lib
from attnjax import models


def get_config():
    config = config_lib.translation()
    config.model = models.fields("transformer", "iwslt", tie="decoder", positions="fairseq", epsilon=1e-5)
    config.data.source = "text:data/iwslt14"
    config.data.languages = ("de", "en")
    config.data.validation = "valid"
    config.data.vocabulary.size, config.data.vocabulary.joint = 8_000, False
    config.data.batching.max_tokens = 4_096
    config.data.batching.max_length = 176
    config.epochs = 100.0
    config.keep_checkpoints = 10
    config.label_smoothing, config.smoothing_form = 0.1, "fairseq"
    config.bleu.tokenize = "none"  # the text is tokenised already
    config.decoding.beam_size, config.decoding.early_stopping = 5, True
    config.decoding.length_penalty, config.decoding.alpha = "average", 1.0
    config.optimizer.name, config.optimizer.b2, config.optimizer.weight_decay = "adamw", 0.98, 1e-4
    config.optimizer.learning_rate = 5e-4
    config.optimizer.schedule, config.optimizer.warmup_steps = "inverse_sqrt", 4_000
    return config
