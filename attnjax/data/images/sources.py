"""Random-access sources of labelled images: TFDS data sets, directories and zips of class folders, IDX files."""

import gzip
import logging
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from attnjax.data.fingerprint import digest, file_sizes
from attnjax.data.images.decode import DAMAGE, decode_image
from attnjax.data.images.format import Images, check_channels
from attnjax.data.splits import check_not_empty, check_split, parse_split, position
from attnjax.data.tfds import open_prepared
from attnjax.errors import UserError

IMAGE_SUFFIXES = frozenset([".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"])
CACHE_BYTES = 2**30

_IDX_PREFIX = {"train": "train", "test": "t10k"}


@dataclass(frozen=True)
class ImageSource:
    """Labelled images with random access.

    `load(indices)` returns `(images, labels, mask)`: images uint8, either one array `(B, H, W, C)` or a list of
    `(H, W, C)` of different sizes; labels int32 `(B,)`; mask bool `(B,)`, False for a corrupt image that was skipped.
    `name(index)` is where an image comes from, for messages. `content()` is a digest of what is known without decoding:
    the files' names, labels and sizes; of IDX files their full contents.
    """

    classes: tuple[str, ...]
    channels: int
    length: int
    load: Callable[[np.ndarray], tuple[Images, np.ndarray, np.ndarray]]
    name: Callable[[int], str]
    content: Callable[[], str] = str

    def __len__(self) -> int:
        return self.length


def open_source(
    spec: str,
    split: str,
    *,
    data_dir: str = "",
    channels: int = 3,
    skip_corrupt: bool = False,
    cache_bytes: int = CACHE_BYTES,
) -> ImageSource:
    """Opens the labelled images of a data set.

    Args:
        spec: one of
            `tfds:NAME[/CONFIG][:VERSION]`: one of our own builders, prepared on first use, or a TFDS data set that
                `experiments/prepare.py` has prepared, both in `data_dir` (default: TFDS's);
            `folder:PATH`: a directory or .zip of `SPLIT/CLASS/FILE`, or of `CLASS/FILE` with the only split `all`;
            `idx:PATH`: a directory of IDX files named like MNIST's, gzipped or not, with splits `train` and `test`.
        split: in TFDS's syntax (see `splits`). Adjacent slices are disjoint. The images of a folder are first put in a
            fixed pseudo-random order, which depends only on their number, so that slices contain all classes.
        channels: 1 (grey) or 3 (RGB); every image is converted.
        skip_corrupt: log a corrupt image once and return it with mask False, instead of raising.
        cache_bytes: memory in which decoded images are kept.

    Raises:
        UserError: an unknown spec or split, unreadable or empty data; from `load`, a corrupt image.
    """
    kind, _, place = spec.partition(":")
    if kind not in _OPENERS or not place:
        raise UserError(f"data source '{spec}' is not tfds:NAME, folder:PATH or idx:PATH")
    check_channels(channels)
    name, start, stop = parse_split(split)
    source = _OPENERS[kind](place, name, data_dir, Decoding(channels, skip_corrupt, cache_bytes))
    return _slice(source, position(start, len(source), 0, split), position(stop, len(source), len(source), split))


def _slice(source: ImageSource, start: int, stop: int) -> ImageSource:
    check_not_empty(start, stop, len(source))
    return replace(
        source,
        length=stop - start,
        load=lambda indices: source.load(np.asarray(indices) + start),
        name=lambda index: source.name(index + start),
    )


# Encoded images


@dataclass(frozen=True)
class EncodedImages:
    """Image files: `fetch(index)` returns the encoded image and its label. For the rest see `ImageSource`."""

    length: int
    fetch: Callable[[int], tuple[bytes, int]]
    name: Callable[[int], str]
    content: Callable[[], str]
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Decoding:
    """How encoded images are decoded; see `open_source`."""

    channels: int = 3
    skip_corrupt: bool = False
    cache_bytes: int = CACHE_BYTES


def decoded_images(encoded: EncodedImages, decoding: Decoding) -> ImageSource:
    """Returns a source that decodes images when they are loaded and caches them."""
    cache: dict[int, tuple[np.ndarray, int, bool]] = {}
    room = decoding.cache_bytes

    def example(index: int) -> tuple[np.ndarray, int, bool]:
        # Threads may decode an image twice or exceed the cache by one image; both are harmless.
        nonlocal room
        if index in cache:
            return cache[index]
        try:
            data, label = encoded.fetch(index)
            found = decode_image(data, decoding.channels), label, True
        except DAMAGE as error:
            if not decoding.skip_corrupt:
                raise UserError(f"cannot read image {encoded.name(index)}: {error}") from error
            logging.warning("skipping image %s: %s", encoded.name(index), error)
            found = np.zeros((1, 1, decoding.channels), np.uint8), 0, False
        if found[0].nbytes <= room:
            cache[index] = found
            room -= found[0].nbytes
        return found

    def load(indices: np.ndarray) -> tuple[Images, np.ndarray, np.ndarray]:
        examples = [example(index) for index in np.asarray(indices).tolist()]
        images, labels, mask = zip(*examples, strict=True) if examples else ((), (), ())
        return list(images), np.array(labels, np.int32), np.array(mask, bool)

    return ImageSource(encoded.classes, decoding.channels, encoded.length, load, encoded.name, encoded.content)


# TFDS


def _open_tfds(dataset: str, split: str, data_dir: str, decoding: Decoding) -> ImageSource:
    import tensorflow_datasets as tfds

    builder = open_prepared(dataset, data_dir)
    info = builder.info
    check_split(split, info.splits, f"tfds:{dataset}")
    image_key, label_key = _supervised_keys(info, dataset)
    records = builder.as_data_source(split, decoders={image_key: tfds.decode.SkipDecoding()})

    def fetch(index):
        record = records[index]
        return record[image_key], int(record[label_key])

    classes = tuple(info.features[label_key].names)

    def content():
        files = [Path(path) for path in info.splits[split].filepaths]
        return digest([info.full_name, *classes, *(file.name for file in files), *file_sizes(files)])

    images = EncodedImages(len(records), fetch, lambda index: f"{info.full_name} {split}[{index}]", content, classes)
    return decoded_images(images, decoding)


def _supervised_keys(info, dataset: str) -> tuple[str, str]:
    import tensorflow_datasets as tfds

    keys = info.supervised_keys or ("image", "label")
    # The exact type: subclasses of Image contain videos or label maps.
    kinds = [type(info.features[key]) for key in keys if key in info.features]
    if kinds != [tfds.features.Image, tfds.features.ClassLabel]:
        raise UserError(
            f"tfds:{dataset} is not an image classification data set: its features are {', '.join(info.features)}"
        )
    return keys


# Folders and zips


def _open_folder(place: str, split: str, data_dir: str, decoding: Decoding) -> ImageSource:
    del data_dir
    names, read, sizes = list_images(Path(place).expanduser())
    paths = [PurePosixPath(name) for name in names if not name.endswith("/")]
    files = _image_files([path for path in paths if _visible(path)], place)
    by_class = _class_folders(files, split, place)
    _check_none_empty([PurePosixPath(name) for name in names if name.endswith("/")], files, place)
    classes = tuple(sorted(by_class))
    examples = [(file, label) for label, name in enumerate(classes) for file in sorted(by_class[name])]
    order = np.random.default_rng(0).permutation(len(examples))
    examples = [examples[index] for index in order]

    def fetch(index):
        file, label = examples[index]
        return read(str(file)), label

    def content():
        names = [str(file) for file, _ in examples]
        return digest([*names, *(label for _, label in examples), *sizes(names)])

    images = EncodedImages(len(examples), fetch, lambda index: f"{place}/{examples[index][0]}", content, classes)
    return decoded_images(images, decoding)


class Listing(NamedTuple):
    """The names in a directory or zip file (those of folders end in a slash), and a function that reads a file.

    `sizes(names)` changes when files do, unlike their names; see `fingerprint.file_sizes`. A zip has checksums instead.
    """

    names: list[str]
    read: Callable[[str], bytes]
    sizes: Callable[[Iterable[str]], list[int]]


def list_images(path: Path) -> Listing:
    """Lists a directory or zip file; UserError if it is neither."""
    return _list_zip(path) if path.is_file() else _list_directory(path)


def _list_directory(path: Path) -> Listing:
    if not path.is_dir():
        raise UserError(f"no such image folder: {path}")
    names = []
    for folder, _, files in os.walk(path, followlinks=True):
        prefix = PurePosixPath(Path(folder).relative_to(path).as_posix())
        names += [f"{prefix}/", *(str(prefix / file) for file in files)]
    return Listing(names, lambda name: (path / name).read_bytes(), lambda files: file_sizes(path / f for f in files))


def _list_zip(path: Path) -> Listing:
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile:
        raise UserError(f"{path} is neither a folder nor a zip file") from None
    return Listing(archive.namelist(), archive.read, lambda files: [archive.getinfo(file).CRC for file in files])


def _visible(path: PurePosixPath) -> bool:
    # Desktop systems leave hidden files and folders called __MACOSX.
    return not any(part.startswith((".", "__MACOSX")) for part in path.parts)


def _image_files(paths: list[PurePosixPath], place: str) -> list[PurePosixPath]:
    images = [path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES and len(path.parts) > 1]
    if not images:
        raise UserError(f"no images in {place}: expected SPLIT/CLASS/FILE, with files ending in .png, .jpg, ...")
    if len(images) < len(paths):
        others = sorted(str(path) for path in set(paths) - set(images))
        logging.warning("%s: %d files are not images in class folders, such as %s", place, len(others), others[0])
    return images


def _class_folders(files: list[PurePosixPath], split: str, place: str) -> dict[str, list[PurePosixPath]]:
    """Groups the files of a split by class; without split folders, the only split is `all`."""
    flat = [file for file in files if len(file.parts) == 2]
    if len(flat) == len(files):
        if split != "all":
            raise UserError(f"{place} has no split folders, only CLASS/FILE: write the split as 'all'")
        return _group(flat, level=0)
    if flat:
        raise UserError(f"{place} mixes SPLIT/CLASS/FILE with CLASS/FILE: move {flat[0]} into a class folder")
    by_split = {name: _group(members, level=1) for name, members in _group(files, level=0).items()}
    check_split(split, by_split, place)
    for other, classes in by_split.items():
        differing = sorted(set(classes) ^ set(by_split[split]))
        if differing:
            raise UserError(f"{place}: class folders in only one of '{split}' and '{other}': {', '.join(differing)}")
    return by_split[split]


def _check_none_empty(folders: list[PurePosixPath], files: list[PurePosixPath], place: str) -> None:
    depth = 1 if len(files[0].parts) == 2 else 2
    filled = {file.parts[:depth] for file in files}
    for folder in folders:
        if len(folder.parts) == depth and folder.parts not in filled and _visible(folder):
            raise UserError(f"{place}: class folder {folder} holds no images")


def _group(files: list[PurePosixPath], level: int) -> dict[str, list[PurePosixPath]]:
    groups: dict[str, list[PurePosixPath]] = {}
    for file in files:
        groups.setdefault(file.parts[level], []).append(file)
    return groups


# IDX


def _open_idx(place: str, split: str, data_dir: str, decoding: Decoding) -> ImageSource:
    del data_dir
    check_split(split, _IDX_PREFIX, f"idx:{place}")
    folder = Path(place).expanduser()
    images_file = _idx_file(folder, f"{_IDX_PREFIX[split]}-images-idx3-ubyte")
    labels_file = _idx_file(folder, f"{_IDX_PREFIX[split]}-labels-idx1-ubyte")
    images = _read_idx(images_file, rank=3)[..., None]
    labels = _read_idx(labels_file, rank=1).astype(np.int32)
    if len(images) != len(labels):
        raise UserError(f"{images_file} has {len(images)} images but {labels_file} has {len(labels)} labels")
    classes = tuple(str(digit) for digit in range(max(10, labels.max(initial=0) + 1)))

    def load(indices: np.ndarray) -> tuple[Images, np.ndarray, np.ndarray]:
        return images[indices].repeat(decoding.channels, axis=-1), labels[indices], np.ones(len(indices), bool)

    def content():
        return digest([images.tobytes(), labels.tobytes()])

    return ImageSource(classes, decoding.channels, len(images), load, lambda index: f"{images_file}[{index}]", content)


def _idx_file(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise UserError(f"no IDX file {folder / name}, gzipped (.gz) or not")


def _read_idx(path: Path, rank: int) -> np.ndarray:
    """Reads an IDX file of uint8: two zero bytes, 8, the rank, the sizes as big-endian uint32, then the data."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    if data[:4] != bytes([0, 0, 8, rank]):
        raise UserError(f"{path} is not an IDX file of bytes in {rank} dimensions: it starts with {data[:4].hex()}")
    header = 4 + 4 * rank
    shape = tuple(np.frombuffer(data[4:header], ">u4").astype(int).tolist())
    if len(shape) != rank or len(data) != header + int(np.prod(shape)):
        raise UserError(f"{path} is truncated or too long: {len(data)} bytes for the shape {shape} it declares")
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


_OPENERS = {"tfds": _open_tfds, "folder": _open_folder, "idx": _open_idx}
