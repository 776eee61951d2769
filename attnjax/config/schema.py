"""All fields of an experiment's config: their defaults, what they mean, and which values they may have."""

import dataclasses
from typing import Any

import sacrebleu
from ml_collections import ConfigDict

from attnjax.config.ranges import (
    BELOW_ONE,
    COUNT,
    FLAG,
    MAX_FLOAT,
    NAME,
    POSITIVE,
    SHARE,
    TEXT,
    Field,
    Rule,
    choice,
    each,
    integers,
    numbers,
)
from attnjax.data.images.augment import CROPS, ERASE_FILLS, Augmentation
from attnjax.data.images.format import INTERPOLATIONS, RESIZERS, RESIZES
from attnjax.data.text.batching import METHODS
from attnjax.data.text.vocabulary import KINDS as VOCABULARY_KINDS
from attnjax.decoding.options import LENGTH_PENALTIES
from attnjax.nn.kernels import PRECISIONS
from attnjax.objectives.losses import SMOOTHINGS
from attnjax.training.devices import KINDS as PARALLEL_KINDS
from attnjax.training.optimizer import DECAYS, OPTIMIZERS, OptimizerOptions

Fields = dict[str, Any]  # name -> Field, or a group of fields

# Of the groups that a dataclass documents.
OPTIMIZER_RULES: dict[str, Rule] = {
    "name": choice(*OPTIMIZERS),
    "learning_rate": numbers(0, MAX_FLOAT),
    "schedule": choice(*DECAYS, "noam"),
    "warmup_steps": COUNT,
    "end_learning_rate": numbers(0, MAX_FLOAT),
    "boundaries": each(POSITIVE),
    "decay_factor": numbers(0, 1000, above=True),
    "noam_width": POSITIVE,
    "b1": BELOW_ONE,
    "b2": BELOW_ONE,
    "epsilon": numbers(0, 1, above=True),
    "momentum": BELOW_ONE,
    "nesterov": FLAG,
    "weight_decay": numbers(0, MAX_FLOAT),
    "clip_norm": numbers(0, MAX_FLOAT),
    "freeze": each(NAME),
}
AUGMENT_RULES: dict[str, Rule] = {
    "crop": choice(*CROPS),
    "pad": integers(1, 2**12),
    "scale": each(numbers(0, 1, above=True), 2, 2),
    "ratio": each(numbers(0.01, 100), 2, 2),
    "flip": FLAG,
    "color_jitter": numbers(0, 10),
    "randaugment_layers": integers(0, 100),
    "randaugment_magnitude": numbers(0, 10),
    "randaugment_std": numbers(0, 100),
    "erase": SHARE,
    "erase_fill": choice(*ERASE_FILLS),
    "mixup": numbers(0, 1000),
    "cutmix": numbers(0, 1000),
    "mix_switch": SHARE,
    "mix_probability": SHARE,
    "repeats": integers(1, 1000),
}


def _common() -> Fields:
    """The fields of every experiment."""
    return {
        "seed": Field(0, integers(0, 2**32 - 1)),
        "epochs": Field(10.0, numbers(0, 1e9)),
        "steps": Field(0, COUNT),  # 0: computed from epochs
        # Of products and activations: float32, bfloat16, or auto: bfloat16 on GPUs and TPUs.
        "precision": Field("auto", choice(*PRECISIONS)),
        # Gradient accumulation: microbatches per batch, one after another, to save memory.
        "accumulate": Field(1, integers(1, 2**16)),
        "label_smoothing": Field(0.0, BELOW_ONE),
        "ema_decay": Field(0.0, BELOW_ONE),  # exponential moving average of the weights, used for evaluation; 0: off
        "log_every": Field(50, POSITIVE),  # steps
        # Steps between evaluations on the validation split; 0: an epoch, or as many as take log_every steps.
        "eval_every": Field(0, COUNT),
        "save_every": Field(0, COUNT),  # steps between additional checkpoints; every evaluation saves one anyway
        # Minutes between checkpoints where evaluations are further apart; 0: off, as with several kept for an average.
        "save_minutes": Field(10.0, numbers(0, 1e6)),
        # The latest ones, beside the best; `--checkpoint=average` is their mean.
        "keep_checkpoints": Field(1, POSITIVE),
        "parallel": {
            # "pmap": data parallelism; "jit": on a mesh of the three sizes below.
            "kind": Field("pmap", choice(*PARALLEL_KINDS)),
            "data": Field(0, COUNT),  # shards the batch; 0: all devices that the other two leave
            "fsdp": Field(1, POSITIVE),  # shards the batch, and the training state
            "tensor": Field(1, POSITIVE),  # shards heads and hidden units
        },
        "init_from": Field("", TEXT),  # a run folder or a weights file to initialize a new run from
        "model": {},  # by attnjax.models.fields; ranges.MODEL_RULES has what its fields may be
        "optimizer": _of(OptimizerOptions(), OPTIMIZER_RULES),
    }


def _images() -> Fields:
    """The fields of `data` that say how images become arrays."""
    return {
        "image_size": Field((32, 32), each(integers(1, 2**14), 2, 2)),  # height, width
        "channels": Field(3, integers(1, 3)),
        "mean": Field((0.5,), each(numbers(-1000, 1000), 1, 3)),  # of pixels in [0, 1]; one number, or one per channel
        "std": Field((0.5,), each(numbers(1e-6, 1000), 1, 3)),
        # "crop": the shorter side, then a centre crop; "stretch": both sides.
        "resize": Field("crop", choice(*RESIZES)),
        # Of the centre crop in evaluation, with "crop": 0.875 is usual at 224 pixels.
        "crop_fraction": Field(1.0, numbers(0.01, 1)),
        "interpolation": Field("bilinear", choice(*INTERPOLATIONS)),
        "resizer": Field("pillow", choice(*RESIZERS)),  # or "opencv": faster, without antialiasing
        "workers": Field(0, integers(0, 1024)),  # threads that load images; 0: one per core
        "skip_corrupt": Field(False, FLAG),  # mask images that cannot be decoded, and log them, instead of stopping
        "max_skipped": Field(0.1, SHARE),  # share of corrupt images above which it stops all the same
        "augment": _of(Augmentation(), AUGMENT_RULES),
    }


def _text() -> Fields:
    """The fields of `data` that say how sentences become batches."""
    return {
        "vocabulary": {
            "kind": Field("bpe", choice(*VOCABULARY_KINDS)),
            "size": Field(8000, integers(5, 2**24)),
            "joint": Field(True, FLAG),  # one vocabulary for both languages
            "lowercase": Field(False, FLAG),
            "coverage": Field(1.0, numbers(0.9, 1)),  # share of the characters that get a subword
        },
        "sampling": {  # BPE-dropout, or unigram's subword regularization
            "alpha": Field(0.0, SHARE),
            "nbest": Field(-1, integers(2, also=[-1])),
        },
        "batching": {
            "method": Field("bucket", choice(*METHODS)),  # sentences of similar length; or "pack": several per row
            "max_tokens": Field(4096, integers(1, 2**24)),  # per batch over all devices and per side, padding included
            "max_length": Field(128, integers(1, 2**20)),  # longer pairs are left out of training
            "shapes": Field(8, integers(1, 1000)),  # bucket widths to compile for
        },
        "eval_tokens": Field(8192, integers(1, 2**24)),  # per batch of evaluation or decoding
    }


def _output() -> Fields:
    """The fields that say how outputs are decoded, and how they are measured."""
    return {
        "smoothing_form": Field("uniform", choice(*SMOOTHINGS)),  # where label smoothing puts its mass
        "decoding": {
            "beam_size": Field(4, integers(1, 1000)),
            # "gnmt": ((5 + length) / 6)^alpha; "average": length^alpha; "none"
            "length_penalty": Field("gnmt", choice(*LENGTH_PENALTIES)),
            "alpha": Field(0.6, numbers(-100, 100)),
            # True: stop at beam_size finished hypotheses, however unlikely: fairseq's rule.
            "early_stopping": Field(False, FLAG),
            # True: an eos forced by the maximum length counts its log-probability; False: 0.
            "score_forced_eos": Field(True, FLAG),
            # Counting eos; an output ends before it only where the rules leave no other token.
            "min_length": Field(1, integers(1, 2**20)),
            # An output has at most this many tokens more than its source.
            "extra_length": Field(50, integers(0, 2**20)),
            "no_repeat_ngram": Field(0, integers(0, 2**20)),  # no n-gram of this size twice; 0: no such rule
        },
        "bleu": {
            "tokenize": Field("13a", choice(*sacrebleu.BLEU.TOKENIZERS)),  # sacreBLEU's
            "lowercase": Field(False, FLAG),
            "moses": Field(False, FLAG),  # also report tokenized BLEU, after Moses' normalization and tokenizer
        },
    }


def _splits(validation: str) -> Fields:
    return {
        "data_dir": Field("", TEXT),  # where TFDS sets are prepared; empty: TFDS's default
        "train": Field("train", NAME),
        "validation": Field(validation, TEXT),  # selects the best checkpoint; empty: none
        "test": Field("test", TEXT),
    }


def _of(options: Any, rules: dict[str, Rule]) -> Fields:
    """Returns the fields of a dataclass, which documents them, with their rules."""
    return {name: Field(value, rules[name]) for name, value in dataclasses.asdict(options).items()}


def _classification() -> Fields:
    return _common() | {
        "task": Field("classification", choice("classification")),
        "batch_size": Field(128, integers(1, 2**20)),  # over all devices
        "eval_batch_size": Field(512, integers(1, 2**20)),
        # The validation metric that selects the best checkpoint.
        "best_metric": Field("accuracy", choice("accuracy", "loss")),
        "data": {
            "source": Field("", TEXT),  # tfds:NAME, folder:PATH (or a zip) or idx:PATH
            **_splits(validation=""),
            **_images(),
        },
    }


def _translation() -> Fields:
    return _common() | {
        **_output(),
        "task": Field("translation", choice("translation")),
        # The validation metric that selects the best checkpoint; BLEU and exact match by greedy search.
        "best_metric": Field("bleu", choice("bleu", "exact_match", "accuracy", "loss")),
        "data": {
            "source": Field("", TEXT),  # text:FOLDER, tsv:FILE:FIRST,SECOND or tfds:NAME
            "languages": Field(("en", "de"), each(NAME, 2, 2)),  # from, to
            "skip_blank": Field(False, FLAG),  # leave out pairs with a blank side
            **_splits(validation="val"),
            **_text(),
        },
    }


def _captioning() -> Fields:
    fields = _common() | {
        **_output(),
        "task": Field("captioning", choice("captioning")),
        # The validation metric that selects the best checkpoint; CIDEr-D of captions only; both by greedy search.
        "best_metric": Field("cider", choice("cider", "bleu", "accuracy", "loss")),
        "encoder_from": Field("", TEXT),  # a run folder or a weights file to initialize the image encoder from
        "data": {
            # flickr8k:FOLDER or captions:FOLDER; for translation text:FOLDER, with the two fields below.
            "source": Field("", TEXT),
            "images": Field("", TEXT),  # a folder or zip of image files
            # TSV of SPLIT, LINE (from 0) and image FILE: the lines of the text that have an image.
            "image_lines": Field("", TEXT),
            "languages": Field(("image", "en"), each(NAME, 2, 2)),  # from, to; for translation ("en", "de")
            "skip_blank": Field(False, FLAG),  # leave out captions without text
            "shuffle_images": Field(False, FLAG),  # in evaluation, give each example another one's image: a control
            **_splits(validation="dev"),
            **_text(),
            **_images(),
        },
    }
    fields["decoding"]["extra_length"] = fields["decoding"]["extra_length"]._replace(default=30)
    fields["bleu"]["lowercase"] = fields["bleu"]["lowercase"]._replace(default=True)
    return fields


FIELDS: dict[str, Fields] = {
    "classification": _classification(),
    "translation": _translation(),
    "captioning": _captioning(),
}


def _defaults(fields: Fields) -> dict[str, Any]:
    return {name: field.default if isinstance(field, Field) else _defaults(field) for name, field in fields.items()}


def classification() -> ConfigDict:
    """Returns the config of an image classification experiment with every field at its default.

    An experiment sets `model` (by `attnjax.models.fields`) and what it changes; `load` refuses a misspelt field.
    """
    return ConfigDict(_defaults(FIELDS["classification"]))


def translation() -> ConfigDict:
    """Returns the config of a translation experiment with every field at its default; see `classification`."""
    return ConfigDict(_defaults(FIELDS["translation"]))


def captioning() -> ConfigDict:
    """Returns the config of an experiment that generates text from images, or from images and sentences.

    The config of a captioner (`attnjax.models.fields`) has those of its two parts in `encoder` and `text`. With a
    transformer as the model, only the sentences are read: the baseline of image-guided translation. See also
    `classification`.
    """
    return ConfigDict(_defaults(FIELDS["captioning"]))


DEFAULTS = {"classification": classification, "translation": translation, "captioning": captioning}
