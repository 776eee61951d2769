"""IDX, the file format of MNIST."""

import math
from pathlib import Path

import numpy as np

from attnjax.data import files
from attnjax.data.splits import check_split
from attnjax.errors import UserError

_PREFIX = {"train": "train", "test": "t10k"}
IDX_SPLITS = tuple(_PREFIX)


def read_split(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray, Path]:
    """Returns images uint8 `(N, H, W)`, labels int32 `(N,)` and the images' file; UserError if missing or damaged."""
    check_split(split, _PREFIX, f"idx:{folder}")
    images_file = _find(folder / f"{_PREFIX[split]}-images-idx3-ubyte")
    labels_file = _find(folder / f"{_PREFIX[split]}-labels-idx1-ubyte")
    images, labels = _read(images_file, rank=3), _read(labels_file, rank=1).astype(np.int32)
    if len(images) != len(labels):
        raise UserError(f"{images_file} has {len(images)} images but {labels_file} has {len(labels)} labels")
    return images, labels, images_file


def _find(path: Path) -> Path:
    if found := files.find(path):
        return found
    raise UserError(f"no IDX file {path}, gzipped (.gz) or not")


def _read(path: Path, rank: int) -> np.ndarray:
    """Reads an array of uint8: two zero bytes, 8, the rank, the sizes as big-endian uint32, then the data."""
    data = files.read(path)
    if data[:4] != bytes([0, 0, 8, rank]):
        raise UserError(f"{path} is not an IDX file of bytes in {rank} dimensions: it starts with {data[:4].hex()}")
    header = 4 + 4 * rank
    shape = tuple(np.frombuffer(data[4:header], ">u4").astype(int).tolist())
    if len(shape) != rank or len(data) != header + math.prod(shape):
        raise UserError(f"{path} is truncated or too long: {len(data)} bytes for the shape {shape} it declares")
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)
