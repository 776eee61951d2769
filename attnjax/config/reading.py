"""Reading configs: loading a config file, typed overrides, the copy in the run folder, what differs."""

import ast
import importlib.util
import inspect
import json
import sys
import traceback
import warnings
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from attnjax import __version__, models
from attnjax.config import ranges
from attnjax.config.ranges import shown
from attnjax.config.schema import DEFAULTS, FIELDS
from attnjax.errors import UserError, nearest
from attnjax.files import write_atomically

# Changing these when a run is resumed cannot change its weights.
CADENCE_FIELDS = (
    *("log_every", "eval_every", "save_every", "save_minutes", "keep_checkpoints"),
    *("eval_batch_size", "data.eval_tokens", "data.workers"),
)
# How and where the same model is computed: they change the weights by rounding, and scanned blocks draw other dropout.
COMPUTING_FIELDS = ("parallel.*", "model.*remat", "model.*scan")  # * is any path
VERSION_FIELD = "attnjax"  # of config.json
# Whether a corrupt image ends a training or is left out of its batch; those before are the same either way.
TOLERANCE_FIELDS = ("data.skip_corrupt",)
FREE_FIELDS = (*CADENCE_FIELDS, *COMPUTING_FIELDS, *TOLERANCE_FIELDS)  # those that may differ when a run is resumed


def load(spec: str, source: str = "") -> ConfigDict:
    """Returns the config of `FILE.py` or `FILE.py:a=1,b=x`, where a and b are parameters of its get_config.

    `source`, if given, is `--config.data.source`: a get_config with a parameter of this name chooses by the data.
    UserError for an argument that it does not take, and for a field that its task does not have or of another type.
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
    if source and "source" in parameters:
        chosen.setdefault("source", source)
    config = _call(path, get_config, **chosen)
    if not isinstance(config, ConfigDict) or config.get("task") not in DEFAULTS:
        raise UserError(f"config '{path}' returns none of {', '.join(f'attnjax.config.{name}()' for name in DEFAULTS)}")
    _refuse_unknown(config, DEFAULTS[config.task](), f"config '{path}': config")
    _make_plain(config)
    return config


def _refuse_unknown(config, known, where):
    """Raises UserError for fields that are not `known`, but for a model's, which `models.fields` checks."""
    for name, value in config.items():
        if name not in known:
            raise UserError(f"{where} has no field '{name}', {nearest(name, known)}")
        if isinstance(value, ConfigDict) and name != "model":
            _refuse_unknown(value, known[name], f"{where}.{name}")


def _make_plain(config):
    """Replaces lists by tuples and NumPy's numbers by Python's, as they are read back from a run folder."""
    with config.unlocked():
        for name, value in list(config.items()):
            if isinstance(value, ConfigDict):
                _make_plain(value)
            elif isinstance(value, list | np.generic):
                del config[name]  # its type would be kept
                config[name] = _plain(value)


def load_sweep(spec: str) -> list[dict[str, Any]]:
    """Returns the overrides of each trial of the sweep of `FILE.py` or `FILE.py:a=1,b=x`."""
    path = spec.partition(":")[0]
    trials = _call(path, _function(path, "sweep"))
    if not isinstance(trials, list | tuple) or not all(isinstance(fields, dict) for fields in trials):
        raise UserError(f"config '{path}': sweep() should return a list of overrides, as attnjax.sweeps.seeds(3) does")
    return list(trials)


def _function(path, name):
    """Returns a function of a config file."""
    if not Path(path).is_file():
        raise UserError(f"no config file '{path}'")
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    if spec is None:
        raise UserError(f"config '{path}' is not a Python file (.py)")
    module = importlib.util.module_from_spec(spec)
    root = _import_root(Path(path))
    sys.path.insert(0, root)
    try:
        _call(path, spec.loader.exec_module, module=module)
    finally:
        sys.path.remove(root)
    if not hasattr(module, name):
        raise UserError(f"config '{path}' has no function {name}")
    return getattr(module, name)


def _call(path, function, **arguments):
    """Returns what a function of a config file returns; UserError with the file's line if it fails."""
    try:
        return function(**arguments)
    except UserError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if Path(frame.filename).resolve() == Path(path).resolve()]
        if isinstance(error, SyntaxError):
            lines.append(error.lineno)
        cause = error
        while cause.args and isinstance(cause.args[0], Exception):  # as ConfigDict wraps that of an unknown field
            cause = cause.args[0]
        text = " ".join(str(cause.args[0] if isinstance(cause, KeyError) and cause.args else cause).split())
        line = f", line {lines[-1]}" if lines else ""
        raise UserError(f"config '{path}'{line}: {type(error).__name__}: {text}") from error


def _import_root(path):
    """Returns the folder from which a config imports its neighbours: `from configs import fashion_vit`."""
    return str(next(folder for folder in path.resolve().parents if not (folder / "__init__.py").exists()))


def parse(text: str, like: Any, where: str) -> Any:
    """Returns `text` as a value of the type of `like`; UserError naming `where` if it is not one."""
    if isinstance(like, str):
        return text
    try:
        with warnings.catch_warnings(action="ignore"):  # of escapes in a string
            value = ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
        if isinstance(like, float) and type(value) is int:
            value = float(value)
    except (ValueError, SyntaxError, OverflowError, RecursionError, MemoryError):
        value = None
    if isinstance(like, tuple) and isinstance(value, tuple | list):
        if not like or not value:
            return tuple(value)
        return tuple(parse(str(item), like[0], where) for item in value)
    if type(value) is not type(like):
        raise UserError(f"{where}={shown(text)}: expected {type(like).__name__}, like {like!r}")
    return value


def override(config: ConfigDict, overrides: Iterable[tuple[str, str]]) -> None:
    """Sets fields by dotted path, in place, and checks the config.

    UserError for an unknown path, and for a value of another type or out of its range.
    """
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
            raise UserError(f"--config.{path}={shown(text)}: this is a group; its fields: {', '.join(sorted(node))}")
        parent[leaf] = parse(text, node, f"--config.{path}")
    check(config)


def check(config: ConfigDict) -> None:
    """Raises UserError for the first field whose value is of another type or out of its range, and says what is right.

    The ranges are in `attnjax.config.schema`, those of models in `attnjax.config.ranges`.
    """
    ranges.check_value("task", config.task, ranges.choice(*FIELDS))
    ranges.check(config, FIELDS[config.task])


def save(config: ConfigDict, path: Path) -> None:
    """Writes a config as JSON, with the version of attnjax that wrote it."""
    write_atomically(path, json.dumps(to_json(config), indent=2) + "\n")


def to_json(config: ConfigDict) -> dict[str, Any]:
    """Returns the JSON object of a config, with the version of attnjax that wrote it."""
    return {VERSION_FIELD: __version__} | resolve(config).to_dict()


def resolve(config: ConfigDict) -> ConfigDict:
    """Returns a copy with references replaced by their values."""
    return config.copy_and_resolve_references()


def read(path: Path) -> ConfigDict:
    """Returns a config saved in a run folder, with the defaults of fields that are missing.

    UserError if it is damaged, or another version of attnjax wrote it.
    """
    try:
        saved = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"'{path.parent}' is not a run folder: it has no {path.name}") from None
    except OSError as error:
        raise UserError(f"cannot read '{path}': {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"'{path}' is damaged: {error}") from None
    return from_json(saved, f"'{path}'")


def from_json(saved: dict[str, Any], place: str) -> ConfigDict:
    """Returns the config of `to_json`, read from `place`; errors as in `read`."""
    try:
        fields = _plain(saved)
        if (version := fields.pop(VERSION_FIELD, None)) != __version__:
            writer = f"attnjax {version}" if version else "an unknown version of attnjax"
            raise UserError(f"it was written by {writer}, which this one, {__version__}, cannot open")
        config = DEFAULTS[fields["task"]]()
        with config.unlocked():
            config.update(fields)
            config.model = _complete(config.model)
        check(config)
    except UserError as error:
        raise UserError(f"{place}: {error}") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(f"{place} is damaged: {error}") from None
    return config


def _plain(value):
    """Returns a value of a config as JSON can keep it, but for tuples, which are there in place of lists."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(map(_plain, value))
    return value.item() if isinstance(value, np.generic) else value


def _complete(model):
    """Returns a model's fields, and those of its parts, with the defaults of all that are missing."""
    given = {key: _complete(value) if isinstance(value, ConfigDict) else value for key, value in model.items()}
    return models.fields(**given)


def flat(config: ConfigDict) -> dict[str, Any]:
    """Returns dotted path -> value for all fields."""
    return dict(_flat(resolve(config)))


def _flat(config, prefix=""):
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, _plain(value)


def changes(old: ConfigDict, new: ConfigDict, free: Iterable[str] = FREE_FIELDS) -> dict[str, tuple[Any, Any]]:
    """Returns field -> (old, new) for each that differs, except those that match one of the patterns `free`."""
    before, after = flat(old), flat(new)
    pairs = {key: (before.get(key, "(absent)"), after.get(key, "(absent)")) for key in sorted({**before, **after})}
    return {
        key: (a, b)
        for key, (a, b) in pairs.items()
        if a != b and not any(fnmatchcase(key, pattern) for pattern in free)
    }


def differences(old: ConfigDict, new: ConfigDict, free: Iterable[str] = FREE_FIELDS) -> list[str]:
    """Returns `changes` as lines `field: old -> new`."""
    return [f"{key}: {a!r} -> {b!r}" for key, (a, b) in changes(old, new, free).items()]
