"""Reads weight files into named arrays, without executing code: torch files only with `weights_only`."""

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from attnjax.errors import UserError

Arrays = dict[str, np.ndarray]

_IN_FOLDER = ("model.safetensors", "pytorch_model.bin")  # the weights in a Hugging Face folder, preferred first
_WRAPPERS = ("model", "state_dict")  # keys under which training code saves a state dict


def read_arrays(path: str | Path) -> Arrays:
    """Returns the arrays of a weights file by name; half-precision ones as float32.

    `path` is a .npz, .safetensors or torch file (.pt, .pth, .bin), or a Hugging Face folder. UserError if it is
    missing, damaged, of another kind, or contains anything but arrays.
    """
    path = weights_file(path)
    try:
        arrays = _READERS[path.suffix](path)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, SafetensorError) as error:
        raise UserError(f"'{path}' is damaged, or not a {path.suffix} file: {_first_line(error)}") from error
    return {name: _widen(array) for name, array in arrays.items()}


def weights_file(path: str | Path) -> Path:
    """Returns `path` itself or the weights file in the folder `path`; UserError if there is none."""
    path = Path(path)
    if path.is_dir():
        found = [path / name for name in _IN_FOLDER if (path / name).is_file()]
        if not found:
            raise UserError(f"folder '{path}' contains no weights: expected {' or '.join(_IN_FOLDER)}")
        path = found[0]
    if not path.is_file():
        raise UserError(f"no weights file or folder '{path}'")
    if path.suffix not in _READERS:
        raise UserError(f"'{path}' does not end in a known weights suffix. Known: {', '.join(_READERS)}")
    return path


def read_description(path: str | Path) -> dict[str, Any]:
    """Returns the Hugging Face config.json beside the weights; empty if there is none."""
    file = weights_file(path).with_name("config.json")
    if not file.is_file():
        return {}
    try:
        description = json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"'{file}' is damaged: {_first_line(error)}") from error
    return description if isinstance(description, dict) and "model_type" in description else {}


def _read_npz(path: Path) -> Arrays:
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def _read_torch(path: Path) -> Arrays:
    try:
        import torch
    except ImportError:
        raise UserError(f"reading '{path}' needs torch: pip install torch") from None
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
    except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError) as error:
        raise UserError(f"'{path}' is damaged, or contains more than tensors: {_first_line(error)}") from error
    for wrapper in _WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise UserError(f"'{path}' is not a state dict of named tensors")
    return {name: (x.float() if x.is_floating_point() else x).detach().numpy() for name, x in state.items()}


def _widen(array: np.ndarray) -> np.ndarray:
    if array.dtype == np.dtype("V2"):  # numpy's dtype for saved bfloat16
        array = array.view(ml_dtypes.bfloat16)
    return array.astype(np.float32) if array.dtype in (np.float16, ml_dtypes.bfloat16) else array


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


_READERS: dict[str, Callable[[Path], Arrays]] = {
    ".npz": _read_npz,
    ".safetensors": safetensors.numpy.load_file,
    **dict.fromkeys((".pt", ".pth", ".bin"), _read_torch),
}
