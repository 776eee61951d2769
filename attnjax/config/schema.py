"""The fields of every experiment, with their defaults: one function for each task."""

from typing import Any

from ml_collections import ConfigDict


def _common() -> dict[str, Any]:
    """The fields of every experiment."""
    return {
        "seed": 0,
        "epochs": 10.0,
        "steps": 0,  # 0: from epochs
        "accumulate": 1,  # parts of a batch whose gradients are summed one after another, for less memory
        "label_smoothing": 0.0,
        "ema_decay": 0.0,  # exponential moving average of the weights, used for evaluation; 0: off
        "log_every": 50,  # steps
        "eval_every": 0,  # steps between evaluations on the validation split; 0: every epoch
        "save_every": 0,  # steps between checkpoints beside those of each evaluation; 0: none
        "keep_checkpoints": 1,  # the last ones, beside the best; `--checkpoint=average` is their mean
        "parallel": {
            "kind": "pmap",  # data parallel; "jit": on a mesh of the three sizes below
            "data": 0,  # cuts the batch; 0: all devices that the other two leave
            "fsdp": 1,  # cuts the batch, and the state too
            "tensor": 1,  # cuts heads and hidden units
        },
        "init_from": "",  # a run folder or a weights file to start a new run from
        "model": {},
        "optimizer": {
            "name": "adamw",  # sgd, adam, adamw, lamb
            "learning_rate": 1e-3,  # the peak; noam: the factor before d^-0.5
            "schedule": "cosine",  # constant, step, cosine, linear, inverse_sqrt, noam
            "warmup_steps": 0,
            "end_learning_rate": 0.0,  # of cosine and linear
            "boundaries": (),  # of step: the steps from which the rate is decay_factor times what it was
            "decay_factor": 0.1,
            "noam_width": 512,  # d_model in noam's d^-0.5
            "b1": 0.9,
            "b2": 0.999,
            "epsilon": 1e-8,
            "momentum": 0.9,
            "nesterov": False,
            "weight_decay": 0.0,  # on kernels only: never on biases, norms, class tokens, position tables
            "clip_norm": 0.0,  # global norm of the gradient; 0: off
            "freeze": (),  # parts of the model that stay as they are, like ("encoder",): names as the log lists them
        },
    }


def _images() -> dict[str, Any]:
    """The fields of `data` that say how images become arrays."""
    return {
        "image_size": (32, 32),  # height, width
        "channels": 3,
        "mean": (0.5,),  # of pixels in [0, 1], one number or one a channel
        "std": (0.5,),
        "resize": "crop",  # "crop": shorter side, then centre crop; "stretch"
        "crop_fraction": 1.0,  # of the evaluation's centre crop, with "crop": 0.875 is usual at 224 pixels
        "interpolation": "bilinear",
        "skip_corrupt": False,
        "augment": {
            "crop": "none",  # "pad": random crop after padding; "resized": random area and aspect
            "pad": 4,
            "scale": (0.08, 1.0),
            "ratio": (3 / 4, 4 / 3),
            "flip": False,
            "randaugment_layers": 0,
            "randaugment_magnitude": 9.0,
            "randaugment_std": 0.5,
            "color_jitter": 0.0,
            "mixup": 0.0,  # alpha of the beta distribution; 0: off
            "cutmix": 0.0,
            "mix_probability": 1.0,
            "mix_switch": 0.5,  # of cutmix, when both are on
            "erase": 0.0,  # probability
            "erase_fill": "noise",  # or "zero"
            "repeats": 1,  # copies of an image in a batch
        },
    }


def _text_data() -> dict[str, Any]:
    """The fields of `data` that say how sentences become batches."""
    return {
        "vocabulary": {
            "kind": "bpe",  # or "unigram"
            "size": 8000,
            "joint": True,  # one for both languages
            "lowercase": False,
            "coverage": 1.0,  # share of characters
        },
        "sampling": {"alpha": 0.0, "nbest": -1},  # BPE-dropout, or unigram's subword regularisation
        "batching": {
            "method": "bucket",  # or "pack"
            "max_tokens": 4096,  # of a batch over all devices, a side, padding included
            "max_length": 128,  # longer pairs are left out of training
            "shapes": 8,  # widths to compile for
        },
        "eval_tokens": 8192,  # of a batch of evaluation or decoding
    }


def _output() -> dict[str, Any]:
    """The fields of what is decoded, and how it is measured."""
    return {
        "smoothing_form": "uniform",  # or "fairseq", "joeynmt": where label smoothing puts its mass
        "decoding": {
            "beam_size": 4,
            "length_penalty": "gnmt",  # ((5 + length) / 6)^alpha; "average": length^alpha; "none"
            "alpha": 0.6,
            "early_stopping": False,  # or once beam_size hypotheses have ended, however unlikely: fairseq's rule
            "min_length": 1,  # counting eos
            "extra_length": 50,  # an output has at most as many tokens more than its source
            "no_repeat_ngram": 0,  # no n-gram of this size twice; 0: no such rule
        },
        "bleu": {
            "tokenize": "13a",  # sacreBLEU's
            "lowercase": False,
            "moses": False,  # also tokenised BLEU, after Moses' normalisation and tokeniser
        },
    }


def classification() -> ConfigDict:
    """Returns the config of an image classification experiment with every field at its default.

    An experiment sets `model` (by `attnjax.models.fields`) and what it changes; `load` refuses a misspelt field.
    """
    return ConfigDict(
        _common()
        | {
            "task": "classification",
            "batch_size": 128,  # over all devices
            "eval_batch_size": 512,
            "best_metric": "accuracy",  # of the validation, chooses the best checkpoint; or "loss"
            "data": {
                "source": "",  # tfds:NAME, folder:PATH (or a zip) or idx:PATH
                "data_dir": "",  # where TFDS sets are prepared; empty: TFDS's default
                "train": "train",
                "validation": "",  # chooses the best checkpoint; empty: none
                "test": "test",
            }
            | _images(),
        }
    )


def translation() -> ConfigDict:
    """Returns the config of a translation experiment with every field at its default; see `classification`."""
    data = {
        "source": "",  # text:FOLDER, tsv:FILE:FIRST,SECOND or tfds:NAME
        "data_dir": "",  # where TFDS sets are prepared; empty: TFDS's default
        "languages": ("en", "de"),  # from, to
        "train": "train",
        "validation": "val",  # chooses the best checkpoint; empty: none
        "test": "test",
        "skip_blank": False,  # leave out pairs with a blank side
    }
    # best_metric: of the validation, by greedy search; or "exact_match", "accuracy", "loss"
    own = {"task": "translation", "best_metric": "bleu", "data": data | _text_data()}
    return ConfigDict(_common() | _output() | own)


def captioning() -> ConfigDict:
    """Returns the config of an experiment that makes text of images, or of images and sentences; see `classification`.

    A captioner of `attnjax.models.fields` has the model of each part in `encoder` and `text`. A transformer reads the
    sentences alone: the baseline of image-guided translation.
    """
    data = {
        "source": "",  # flickr8k:FOLDER, captions:FOLDER, or of translation: text:FOLDER, with the two fields below
        "data_dir": "",  # where TFDS sets are prepared; empty: TFDS's default
        "images": "",  # a folder or zip of image files
        "image_lines": "",  # TSV of SPLIT, LINE (from 0) and image FILE: the lines of the text that have an image
        "languages": ("image", "en"),  # from, to; of translation: ("en", "de")
        "train": "train",
        "validation": "dev",  # chooses the best checkpoint; empty: none
        "test": "test",
        "skip_blank": False,
        "shuffle_images": False,  # in evaluation, give each example another one's image: a control
    }
    own = {
        "task": "captioning",
        "best_metric": "cider",  # of the validation, by greedy search, captions only; or "bleu", "accuracy", "loss"
        "encoder_from": "",  # a run folder or a weights file to start the image encoder from
        "data": data | _text_data() | _images(),
    }
    config = ConfigDict(_common() | _output() | own)
    config.decoding.extra_length = 30
    config.bleu.lowercase = True
    return config


DEFAULTS = {"classification": classification, "translation": translation, "captioning": captioning}
