"""All fields of an experiment's config with their defaults, one function per task."""

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from attnjax.data.images.augment import Augmentation
from attnjax.training.optimizer import OptimizerOptions


def _common() -> dict[str, Any]:
    """The fields of every experiment."""
    return {
        "seed": 0,
        "epochs": 10.0,
        "steps": 0,  # 0: computed from epochs
        "precision": "auto",  # of products and activations: float32, bfloat16, or auto: bfloat16 on GPUs and TPUs
        "accumulate": 1,  # gradient accumulation: microbatches per batch, one after another, to save memory
        "label_smoothing": 0.0,
        "ema_decay": 0.0,  # exponential moving average of the weights, used for evaluation; 0: off
        "log_every": 50,  # steps
        "eval_every": 0,  # steps between evaluations on the validation split; 0: every epoch
        "save_every": 0,  # steps between additional checkpoints; every evaluation saves one anyway
        "keep_checkpoints": 1,  # the latest ones, beside the best; `--checkpoint=average` is their mean
        "parallel": {
            "kind": "pmap",  # data parallelism; "jit": on a mesh of the three sizes below
            "data": 0,  # shards the batch; 0: all devices that the other two leave
            "fsdp": 1,  # shards the batch, and the training state
            "tensor": 1,  # shards heads and hidden units
        },
        "init_from": "",  # a run folder or a weights file to initialize a new run from
        "model": {},  # by attnjax.models.fields
        "optimizer": dataclasses.asdict(OptimizerOptions()),  # attnjax/training/optimizer.py
    }


def _images() -> dict[str, Any]:
    """The fields of `data` that say how images become arrays."""
    return {
        "image_size": (32, 32),  # height, width
        "channels": 3,
        "mean": (0.5,),  # of pixels in [0, 1]; one number, or one per channel
        "std": (0.5,),
        "resize": "crop",  # "crop": the shorter side, then a centre crop; "stretch": both sides
        "crop_fraction": 1.0,  # of the centre crop in evaluation, with "crop": 0.875 is usual at 224 pixels
        "interpolation": "bilinear",  # or "nearest", "bicubic"
        "skip_corrupt": False,  # mask images that cannot be decoded, and log them, instead of stopping
        "max_skipped": 0.1,  # share of corrupt images above which it stops all the same
        "augment": dataclasses.asdict(Augmentation()),  # attnjax/data/images/augment.py
    }


def _text() -> dict[str, Any]:
    """The fields of `data` that say how sentences become batches."""
    return {
        "vocabulary": {
            "kind": "bpe",  # or "unigram"
            "size": 8000,
            "joint": True,  # one vocabulary for both languages
            "lowercase": False,
            "coverage": 1.0,  # share of the characters that get a subword
        },
        "sampling": {"alpha": 0.0, "nbest": -1},  # BPE-dropout, or unigram's subword regularization
        "batching": {
            "method": "bucket",  # sentences of similar length; or "pack": several per row
            "max_tokens": 4096,  # per batch over all devices and per side, padding included
            "max_length": 128,  # longer pairs are left out of training
            "shapes": 8,  # bucket widths to compile for
        },
        "eval_tokens": 8192,  # per batch of evaluation or decoding
    }


def _output() -> dict[str, Any]:
    """The fields that say how outputs are decoded, and how they are measured."""
    return {
        "smoothing_form": "uniform",  # or "fairseq", "joeynmt": where label smoothing puts its mass
        "decoding": {
            "beam_size": 4,
            "length_penalty": "gnmt",  # ((5 + length) / 6)^alpha; "average": length^alpha; "none"
            "alpha": 0.6,
            "early_stopping": False,  # True: stop at beam_size finished hypotheses, however unlikely: fairseq's rule
            "score_forced_eos": True,  # an eos forced by the maximum length counts its log-probability; False: 0
            "min_length": 1,  # counting eos; an output ends before it only where the rules leave no other token
            "extra_length": 50,  # an output has at most this many tokens more than its source
            "no_repeat_ngram": 0,  # no n-gram of this size twice; 0: no such rule
        },
        "bleu": {
            "tokenize": "13a",  # sacreBLEU's
            "lowercase": False,
            "moses": False,  # also report tokenized BLEU, after Moses' normalization and tokenizer
        },
    }


def _splits(validation: str) -> dict[str, Any]:
    return {
        "data_dir": "",  # where TFDS sets are prepared; empty: TFDS's default
        "train": "train",
        "validation": validation,  # selects the best checkpoint; empty: none
        "test": "test",
    }


def classification() -> ConfigDict:
    """Returns the config of an image classification experiment with every field at its default.

    An experiment sets `model` (by `attnjax.models.fields`) and what it changes; `load` refuses a misspelt field.
    """
    data = {"source": ""}  # tfds:NAME, folder:PATH (or a zip) or idx:PATH
    own = {
        "task": "classification",
        "batch_size": 128,  # over all devices
        "eval_batch_size": 512,
        "best_metric": "accuracy",  # the validation metric that selects the best checkpoint; or "loss"
        "data": data | _splits(validation="") | _images(),
    }
    return ConfigDict(_common() | own)


def translation() -> ConfigDict:
    """Returns the config of a translation experiment with every field at its default; see `classification`."""
    data = {
        "source": "",  # text:FOLDER, tsv:FILE:FIRST,SECOND or tfds:NAME
        "languages": ("en", "de"),  # from, to
        "skip_blank": False,  # leave out pairs with a blank side
    }
    own = {
        "task": "translation",
        "best_metric": "bleu",  # on validation, by greedy search; or "exact_match", "accuracy", "loss"
        "data": data | _splits(validation="val") | _text(),
    }
    return ConfigDict(_common() | _output() | own)


def captioning() -> ConfigDict:
    """Returns the config of an experiment that generates text from images, or from images and sentences.

    The config of a captioner (`attnjax.models.fields`) has those of its two parts in `encoder` and `text`. With a
    transformer as the model, only the sentences are read: the baseline of image-guided translation. See also
    `classification`.
    """
    data = {
        "source": "",  # flickr8k:FOLDER or captions:FOLDER; for translation text:FOLDER, with the two fields below
        "images": "",  # a folder or zip of image files
        "image_lines": "",  # TSV of SPLIT, LINE (from 0) and image FILE: the lines of the text that have an image
        "languages": ("image", "en"),  # from, to; for translation ("en", "de")
        "skip_blank": False,  # leave out captions without text
        "shuffle_images": False,  # in evaluation, give each example another one's image: a control
    }
    own = {
        "task": "captioning",
        "best_metric": "cider",  # on validation, by greedy search, captions only; or "bleu", "accuracy", "loss"
        "encoder_from": "",  # a run folder or a weights file to initialize the image encoder from
        "data": data | _splits(validation="dev") | _text() | _images(),
    }
    config = ConfigDict(_common() | _output() | own)
    config.decoding.extra_length = 30
    config.bleu.lowercase = True
    return config


DEFAULTS = {"classification": classification, "translation": translation, "captioning": captioning}
