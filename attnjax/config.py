"""Configs: the fields every experiment has, loading a config file, typed overrides, the copy in the run folder."""

import ast
import importlib.util
import inspect
import json
import traceback
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from attnjax import models
from attnjax.errors import UserError, nearest
from attnjax.files import write_atomically

# Changing these between the stops of one run cannot change its weights.
CADENCE_FIELDS = ("log_every", "eval_every", "save_every", "keep_checkpoints", "eval_batch_size", "data.eval_tokens")
# How and where the same model is computed: it changes the weights by rounding, and by what dropout draws, no more.
COMPUTING_FIELDS = ("parallel.*", "model.*remat", "model.*scan")  # * is any path
FREE_FIELDS = (*CADENCE_FIELDS, *COMPUTING_FIELDS)  # of which a run that is resumed may have others


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


def load(spec: str) -> ConfigDict:
    """Returns the config of `FILE.py` or `FILE.py:a=1,b=x`, where a and b are parameters of its get_config.

    UserError for an argument it does not take, and for a field that its task has not or of another type.
    """
    path, _, arguments = spec.partition(":")
    get_config = _function(path, "get_config")
    parameters = inspect.signature(get_config).parameters
    chosen = {}
    for argument in filter(None, arguments.split(",")):
        name, _, text = argument.partition("=")
        if name not in parameters:
            raise UserError(f"config '{path}' takes no argument '{name}', {nearest(name, parameters)}")
        chosen[name] = parse(text, parameters[name].default, f"{path}:{name}")
    try:
        config = get_config(**chosen)
    except (AttributeError, TypeError) as error:
        frames = traceback.extract_tb(error.__traceback__)
        if frames[-1].filename != inspect.getfile(ConfigDict):
            raise
        line = [frame.lineno for frame in frames if frame.filename == inspect.getfile(get_config)][-1]
        cause = error.args[0].args[0] if isinstance(error.args[0], KeyError) else str(error)
        raise UserError(f"config '{path}', line {line}: {' '.join(cause.split())}") from None
    if not isinstance(config, ConfigDict) or config.get("task") not in DEFAULTS:
        raise UserError(f"config '{path}' returns none of {', '.join(f'attnjax.config.{name}()' for name in DEFAULTS)}")
    _refuse_unknown(config, DEFAULTS[config.task](), f"config '{path}': config")
    return config


def _refuse_unknown(config, known, where):
    """Refuses fields that are not `known`, but for those of a model, which `attnjax.models.fields` knows."""
    for name, value in config.items():
        if name not in known:
            raise UserError(f"{where} has no field '{name}', {nearest(name, known)}")
        if isinstance(value, ConfigDict) and name != "model":
            _refuse_unknown(value, known[name], f"{where}.{name}")


def load_sweep(spec: str) -> list[dict[str, Any]]:
    """Returns the overrides of each trial of the sweep of `FILE.py` or `FILE.py:a=1,b=x`."""
    return list(_function(spec.partition(":")[0], "sweep")())


def _function(path, name):
    """Returns a function of a config file."""
    if not Path(path).is_file():
        raise UserError(f"no config file '{path}'")
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    if spec is None:
        raise UserError(f"config '{path}' is not a Python file (.py)")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, name):
        raise UserError(f"config '{path}' has no function {name}")
    return getattr(module, name)


def parse(text: str, like: Any, where: str) -> Any:
    """Returns `text` as a value of the type of `like`; UserError naming `where` if it is not one."""
    if isinstance(like, str):
        return text
    kind = type(like).__name__
    try:
        value = ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
    except (ValueError, SyntaxError):
        value = None
    if isinstance(like, tuple) and isinstance(value, tuple | list):
        if not like or not value:
            return tuple(value)
        return tuple(parse(str(item), like[0], where) for item in value)
    if isinstance(like, float) and type(value) is int:
        value = float(value)
    if type(value) is not type(like):
        raise UserError(f"{where}={text}: expected {kind}, like {like!r}")
    return value


def override(config: ConfigDict, overrides: Iterable[tuple[str, str]]) -> None:
    """Sets fields by dotted path, in place; UserError for an unknown path or a value of another type."""
    for path, text in overrides:
        *parents, leaf = path.split(".")
        node = config
        for depth, name in enumerate([*parents, leaf]):
            where = ".".join(["config", *parents[:depth]])
            if not isinstance(node, ConfigDict):
                raise UserError(f"--config.{path}: {where} is a value, it has no fields")
            if name not in node:
                raise UserError(f"--config.{path}: {where} has no field '{name}', {nearest(name, node)}")
            parent, node = node, node[name]
        if isinstance(node, ConfigDict):
            raise UserError(f"--config.{path}={text}: this is a group; its fields: {', '.join(sorted(node))}")
        parent[leaf] = parse(text, node, f"--config.{path}")


def save(config: ConfigDict, path: Path) -> None:
    write_atomically(path, json.dumps(resolve(config).to_dict(), indent=2) + "\n")


def resolve(config: ConfigDict) -> ConfigDict:
    """Returns a copy with plain values in place of references."""
    return config.copy_and_resolve_references()


def read(path: Path) -> ConfigDict:
    """Returns a config saved in a run folder; fields that came later than the run have their defaults."""

    def tuples(value):
        if isinstance(value, dict):
            return {key: tuples(item) for key, item in value.items()}
        return tuple(map(tuples, value)) if isinstance(value, list) else value

    try:
        saved = tuples(json.loads(path.read_text()))
        config = DEFAULTS[saved.get("task", "classification")]()
        with config.unlocked():
            config.update(saved)
            config.model = _complete(config.model)
    except FileNotFoundError:
        raise UserError(f"'{path.parent}' is not a run folder: it has no config.json") from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"'{path}' is damaged: {error}") from None
    return config


def _complete(model):
    """Returns a model's fields, and those of its parts, with the defaults of all that are missing."""
    given = {key: _complete(value) if isinstance(value, ConfigDict) else value for key, value in model.items()}
    return models.fields(**given)


def flat(config: ConfigDict) -> dict[str, Any]:
    """Returns dotted path -> value of all fields."""
    return dict(_flat(resolve(config)))


def _flat(config, prefix=""):
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def differences(old: ConfigDict, new: ConfigDict, free: Iterable[str] = FREE_FIELDS) -> list[str]:
    """Returns `field: old -> new` for each field that differs, but for those that one of the patterns `free` fits."""
    old, new = flat(old), flat(new)
    missing = object()
    return [
        f"{key}: {old.get(key, '(absent)')!r} -> {new.get(key, '(absent)')!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key, missing) != new.get(key, missing) and not any(fnmatchcase(key, pattern) for pattern in free)
    ]
