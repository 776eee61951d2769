"""The Transformer, base and big, on WMT14 (Vaswani et al. 2017, sections 3 and 5, table 2).

    python experiments/prepare.py wmt14_translate/de-en    # fr-en for languages=en-fr
    python experiments/train.py --workdir runs/wmt14 \\
        --config configs/paper/wmt14_transformer.py:size=base,languages=en-de
    python experiments/evaluate.py --workdir runs/wmt14 --checkpoint average

Published, newstest2014, tokenised BLEU: base 27.3 (en-de) and 38.1 (en-fr), big 28.4 and 41.8. Not run here. The
paper's cost is 12 hours on 8 P100 (base, 100,000 steps, 3.3e18 FLOPs) and 3.5 days (big, 300,000 steps, 2.3e19).

Different from the paper: subwords come from sentencepiece's BPE, with vocabularies of the same sizes. The averaged
checkpoints are the last 5 (base) or 20 (big), as many steps apart as the paper took in ten minutes. sacreBLEU is lower
than the paper's tokenised BLEU with split compounds: 28.6 for the big model where fairseq reports 29.3.
"""

from attnjax import config as config_lib
from attnjax import models

# size -> (steps, checkpoints to average, steps between them)
SCHEDULE = {"base": (100_000, 5, 1_400), "big": (300_000, 20, 600)}


def get_config(size="base", languages="en-de"):
    config = config_lib.translation()
    french = languages == "en-fr"
    config.model = models.fields("transformer", size)
    if size == "big" and french:
        config.model.dropout = 0.1
    config.data.languages = tuple(languages.split("-"))
    config.data.source = "tfds:wmt14_translate/fr-en" if french else "tfds:wmt14_translate/de-en"
    config.data.validation = "validation"
    config.data.skip_blank = True
    config.data.vocabulary.size = 32_000 if french else 37_000
    config.data.batching.max_tokens = 25_000
    config.data.batching.max_length = 256
    config.steps, config.keep_checkpoints, config.save_every = SCHEDULE[size]
    config.eval_every = 5_000
    config.label_smoothing = 0.1
    config.optimizer.name, config.optimizer.b2, config.optimizer.epsilon = "adam", 0.98, 1e-9
    config.optimizer.schedule, config.optimizer.learning_rate = "noam", 1.0
    config.optimizer.noam_width, config.optimizer.warmup_steps = config.model.width, 4_000
    return config
