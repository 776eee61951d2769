"""Reads weight files into named arrays, without executing code: torch files only with `weights_only`."""

import argparse
import json
import logging
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from attnjax.errors import UserError, nearest

Arrays = dict[str, np.ndarray]

_IN_FOLDER = ("model.safetensors", "pytorch_model.bin")  # the weights in a Hugging Face folder, preferred first
# Keys under which training code saves state dicts, averaged weights first: they are what is evaluated.
_PARTS = ("model_ema", "state_dict_ema", "ema_state_dict", "ema", "model", "state_dict")
_REFUSED = re.compile(r"GLOBAL ([\w.]+\w)")  # in torch's message: the class or function that it did not load


def read_arrays(path: str | Path) -> Arrays:
    """Returns the arrays of a weights file by name; half-precision ones as float32.

    `path` is a .npz, .safetensors or torch file (.pt, .pth, .bin), or a Hugging Face folder. Of a torch file with
    several state dicts, FILE:NAME is the one called NAME; without a name averaged weights are preferred, and a warning
    says which were taken. UserError if the file is missing, damaged, of another kind, or contains anything but arrays.
    """
    _, part = _split(path)
    path = weights_file(path)
    if part and path.suffix not in _TORCH:
        raise UserError(f"'{path}' has no parts: only a torch file may have '{part}' beside other state dicts")
    try:
        arrays = _read_torch(path, part) if path.suffix in _TORCH else _READERS[path.suffix](path)
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, SafetensorError) as error:
        raise UserError(f"'{path}' is damaged, or not a {path.suffix} file: {_first_line(error)}") from error
    return {name: _widen(array) for name, array in arrays.items()}


def weights_file(path: str | Path) -> Path:
    """Returns `path` itself or the weights file in the folder `path`, without a part; UserError if there is none."""
    path, _ = _split(path)
    if path.is_dir():
        found = [path / name for name in _IN_FOLDER if (path / name).is_file()]
        if not found:
            raise UserError(f"folder '{path}' contains no weights: expected {' or '.join(_IN_FOLDER)}")
        path = found[0]
    if not path.is_file():
        raise UserError(f"no weights file or folder '{path}'")
    if path.suffix not in (known := (*_READERS, *_TORCH)):
        raise UserError(f"'{path}' does not end in a known weights suffix. Known: {', '.join(known)}")
    return path


def _split(path: str | Path) -> tuple[Path, str]:
    """Returns FILE:NAME as (FILE, NAME), and any other path as (path, "")."""
    path = Path(path)
    name, colon, part = path.name.rpartition(":")
    return (path.with_name(name), part) if colon and name and not path.exists() else (path, "")


def read_description(path: str | Path) -> dict[str, Any]:
    """Returns Hugging Face's or timm's config.json beside the weights; empty if there is none."""
    description = read_json(path, "config.json")
    return description if description.keys() & {"model_type", "pretrained_cfg"} else {}


def read_json(path: str | Path, name: str) -> dict[str, Any]:
    """Returns the JSON object in the file `name` beside the weights, or {}; UserError if it is damaged."""
    file = weights_file(path).with_name(name)
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"'{file}' is damaged: {_first_line(error)}") from error
    return content if isinstance(content, dict) else {}


def _read_npz(path: Path) -> Arrays:
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            single = file.read(6) == b"\x93NUMPY"
        found = "is a single array (.npy), not the named arrays of an" if single else "is damaged, or not a"
        raise UserError(f"'{path}' {found} .npz file")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except ValueError as error:
        if "allow_pickle" in str(error):
            raise UserError(f"'{path}' contains Python objects, not only arrays; it is not opened") from error
        raise


def _read_safetensors(path: Path) -> Arrays:
    try:
        return safetensors.numpy.load_file(path)
    except (KeyError, AttributeError) as error:  # a type of numbers that NumPy lacks, like an 8-bit float
        raise UserError(f"'{path}' has arrays of a type that NumPy lacks ({error}): save them as float32") from error


def _read_torch(path: Path, part: str) -> Arrays:
    try:
        import torch
        from torch.serialization import safe_globals
    except ImportError:
        raise UserError(f"reading '{path}' needs torch: pip install torch") from None
    try:
        with safe_globals([argparse.Namespace]), warnings.catch_warnings():  # plain data: options, as fairseq's
            warnings.simplefilter("ignore")  # of kinds of pickles and archives, which then fail or not
            saved = torch.load(path, weights_only=True, map_location="cpu")
    except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError, ValueError, TypeError) as error:
        raise UserError(_torch_error(path, str(error))) from error

    def is_state(value):
        return isinstance(value, dict) and value and all(isinstance(tensor, torch.Tensor) for tensor in value.values())

    state = _choose(path, saved, part, is_state)
    for name, tensor in state.items():
        kinds = {"sparse": tensor.layout != torch.strided, "quantised": tensor.is_quantized, "meta": tensor.is_meta}
        if wrong := [kind for kind, is_it in kinds.items() if is_it]:
            raise UserError(f"'{path}': {name} is a {wrong[0]} tensor: save the weights as dense ones of float32")
    return {name: (x.float() if x.is_floating_point() else x).detach().numpy() for name, x in state.items()}


def _choose(path, saved, part, is_state):
    """Returns the state dict called `part` of what a torch file holds; without a name the first of _PARTS, or all."""
    while not is_state(saved) and isinstance(saved, dict):
        held = [name for name in saved if is_state(saved[name])]
        if part and part not in held:
            raise UserError(f"'{path}' has no state dict '{part}', {nearest(part, map(str, held))}")
        known = [name for name in _PARTS if isinstance(saved.get(name), dict)]
        if not (part or known):
            break
        chosen = part or next((name for name in known if name in held), known[0])
        if others := [str(name) for name in held if name != chosen and not part]:
            names, example = _listed([chosen, *others]), f"{path}:{others[0]}"
            logging.warning("'%s' has %s: taking %s; '%s' is another", path, names, chosen, example)
        saved, part = saved[chosen], ""
    if not is_state(saved):
        raise UserError(f"'{path}' is not a state dict of named tensors")
    return saved


def _listed(names):
    return " and ".join([", ".join(names[:-1]), names[-1]])


def _torch_error(path, message):
    """Returns one line on why torch did not open a file; torch's own text advises to execute what is in it."""
    with path.open("rb") as file:
        start = file.read(2)
    if "weights_only" not in message or not start.startswith((b"PK", b"\x80")):  # neither an archive nor a pickle
        return f"'{path}' is damaged, or not a torch file"
    refused = _REFUSED.search(message)
    found = f"{refused[1]}, not only tensors" if refused else "more than tensors"
    return f"'{path}' contains {found}; it is not opened, as that may execute code: save the state dict alone"


def _widen(array: np.ndarray) -> np.ndarray:
    if array.dtype == np.dtype("V2"):  # numpy's dtype for saved bfloat16
        array = array.view(ml_dtypes.bfloat16)
    return array.astype(np.float32) if array.dtype in (np.float16, ml_dtypes.bfloat16) else array


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


_READERS: dict[str, Callable[[Path], Arrays]] = {".npz": _read_npz, ".safetensors": _read_safetensors}
_TORCH = (".pt", ".pth", ".bin")
