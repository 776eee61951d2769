"""Random-access sources of labelled images: TFDS data sets, directories and zips of class folders, IDX files."""

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from attnjax.data import files
from attnjax.data.fingerprint import digest, file_contents
from attnjax.data.images.decode import DAMAGE, decode_image
from attnjax.data.images.folders import Listing, class_folders, folder_splits, list_images, within
from attnjax.data.images.format import Images, check_channels
from attnjax.data.images.idx import IDX_SPLITS, read_split
from attnjax.data.splits import Split, check_split
from attnjax.data.tfds import open_prepared
from attnjax.errors import UserError
from attnjax.files import reason

CACHE_BYTES = 2**30
MAX_SKIPPED = 0.1
Load = Callable[[np.ndarray], tuple[Images, np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class ImageSource:
    """Labelled images with random access.

    `load(indices)` returns `(images, labels, mask)`: images uint8, either one array `(B, H, W, C)` or a list of
    `(H, W, C)` of different sizes; labels int32 `(B,)`; mask bool `(B,)`, False for a corrupt image that was skipped.
    `name(index)` is where an image comes from, for messages. `content()` is a digest of the files' names, labels and
    contents (of very many files, a sample of them); UserError if one cannot be read.
    """

    classes: tuple[str, ...]
    channels: int
    length: int
    load: Load
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
    max_skipped: float = MAX_SKIPPED,
    cache_bytes: int = CACHE_BYTES,
) -> ImageSource:
    """Opens the labelled images of a data set.

    `spec` is one of
        `tfds:NAME[/CONFIG][:VERSION]`: one of our own builders, prepared on first use, or a TFDS data set that
            `experiments/prepare.py` has prepared, both in `data_dir` (default: TFDS's);
        `folder:PATH`: a directory or .zip of `SPLIT/CLASS/FILE`, or of `CLASS/FILE` with the only split `all`;
        `idx:PATH`: a directory of IDX files named like MNIST's, gzipped or not, with splits `train` and `test`.
    `split` is in TFDS's syntax (see `splits`). Adjacent slices are disjoint. The images of a folder are first put in a
    fixed pseudo-random order, which depends only on their number, so that slices contain all classes.

    Images are converted to grey for 1 of `channels` or RGB for 3. Decoded images are kept in memory where all of their
    size would take at most `cache_bytes`. With `skip_corrupt`, a corrupt image is logged once and has mask False;
    otherwise `load` raises UserError. It always does if several images, more than the share `max_skipped` of all, are
    corrupt, or a file cannot be read, which says nothing about its content. `open_source` raises it for an unknown spec
    or split, and for unreadable or empty data.
    """
    kind, place = _parse(spec)
    open_tfds = functools.partial(_open_tfds, data_dir=data_dir)
    openers: dict[str, Callable[..., ImageSource]] = {"tfds": open_tfds, "folder": _open_folder, "idx": _open_idx}
    check_channels(channels)
    part = Split.parse(split)
    with files.opening(spec):
        source = openers[kind](place, part.name, Decoding(channels, skip_corrupt, max_skipped, cache_bytes))
    start, stop = part.bounds(len(source))
    return replace(
        source,
        length=stop - start,
        load=lambda indices: source.load(np.asarray(indices) + start),
        name=lambda index: source.name(index + start),
    )


def split_names(spec: str, data_dir: str = "") -> tuple[str, ...]:
    """Returns the names of a source's splits; UserError as in `open_source`."""
    kind, place = _parse(spec)
    if kind == "folder":
        with files.opening(spec):
            return folder_splits(list_images(Path(place).expanduser()))
    return IDX_SPLITS if kind == "idx" else tuple(open_prepared(place, data_dir).info.splits)


def _parse(spec: str) -> tuple[str, str]:
    kind, _, place = spec.partition(":")
    if kind not in ("tfds", "folder", "idx") or not place:
        raise UserError(f"data source '{spec}' is not tfds:NAME, folder:PATH or idx:PATH")
    return kind, place


@dataclass(frozen=True)
class Decoding:
    """How encoded images are decoded; see `open_source`."""

    channels: int = 3
    skip_corrupt: bool = False
    max_skipped: float = MAX_SKIPPED
    cache_bytes: int = CACHE_BYTES

    def __post_init__(self):
        if not 0 <= self.max_skipped <= 1:
            raise UserError(f"max_skipped is {self.max_skipped}: it should be from 0 to 1, a share of the images")


def loader(
    fetch: Callable[[int], tuple[bytes, int]], name: Callable[[int], str], length: int, decoding: Decoding
) -> Load:
    """Returns the `load` of a source that decodes and caches `length` images; `fetch(index)` returns file and label."""
    cache: dict[int, tuple[np.ndarray, int, bool]] = {}
    skipped: set[int] = set()

    def read(index: int) -> tuple[bytes, int]:
        try:
            return fetch(index)
        except OSError as error:
            raise UserError(f"cannot read image {name(index)}: {reason(error)}") from error

    def skip(index: int, error: Exception) -> None:
        if not decoding.skip_corrupt:
            raise UserError(f"cannot read image {name(index)}: {error}") from error
        if index not in skipped:
            logging.warning("skipping image %s: %s", name(index), error)
            skipped.add(index)
        if len(skipped) > max(1, decoding.max_skipped * length):
            share = f"more than data.max_skipped={decoding.max_skipped} of all"
            raise UserError(
                f"{len(skipped)} of {length} images are corrupt, {share}; the last is {name(index)}: {error}"
            )

    def example(index: int) -> tuple[np.ndarray, int, bool]:
        if index in cache:
            return cache[index]
        try:
            data, label = read(index)
            found = decode_image(data, decoding.channels), label, True
        except DAMAGE as error:
            skip(index, error)
            found = np.zeros((1, 1, decoding.channels), np.uint8), 0, False
        if found[0].nbytes * length <= decoding.cache_bytes:
            cache[index] = found
        return found

    def load(indices: np.ndarray) -> tuple[Images, np.ndarray, np.ndarray]:
        examples = [example(index) for index in np.asarray(indices).tolist()]
        images, labels, mask = zip(*examples, strict=True) if examples else ((), (), ())
        return list(images), np.array(labels, np.int32), np.array(mask, bool)

    return load


def listed_images(
    place: str, listing: Listing, names: Sequence[str], decoding: Decoding, classes=(), labels: Sequence[int] = ()
) -> ImageSource:
    """Returns a source of the files `names` of a listing of `place`; without `labels`, all labels are 0."""

    def fetch(index: int) -> tuple[bytes, int]:
        return listing.read(names[index]), labels[index] if labels else 0

    def name(index: int) -> str:
        return f"{place}/{names[index]}"

    def content() -> str:
        return digest([*names, *labels, *listing.contents(names)])

    return ImageSource(classes, decoding.channels, len(names), loader(fetch, name, len(names), decoding), name, content)


def _open_tfds(dataset: str, split: str, decoding: Decoding, data_dir: str) -> ImageSource:
    import tensorflow_datasets as tfds

    info = (builder := open_prepared(dataset, data_dir)).info
    check_split(split, info.splits, f"tfds:{dataset}")
    image_key, label_key = _supervised_keys(info, dataset)
    records = builder.as_data_source(split, decoders={image_key: tfds.decode.SkipDecoding()})
    classes = tuple(info.features[label_key].names)

    def fetch(index: int) -> tuple[bytes, int]:
        record = records[index]
        return record[image_key], int(record[label_key])

    def name(index: int) -> str:
        return f"{info.full_name} {split}[{index}]"

    def content() -> str:
        paths = [Path(path) for path in info.splits[split].filepaths]
        return digest([info.full_name, *classes, *(path.name for path in paths), *file_contents(paths)])

    return ImageSource(
        classes, decoding.channels, len(records), loader(fetch, name, len(records), decoding), name, content
    )


def _supervised_keys(info, dataset: str) -> tuple[str, str]:
    import tensorflow_datasets as tfds

    keys = info.supervised_keys or ("image", "label")
    # The exact type: subclasses of Image contain videos or label maps.
    kinds = [type(info.features[key]) for key in keys if key in info.features]
    if kinds != [tfds.features.Image, tfds.features.ClassLabel]:
        found = ", ".join(info.features)
        raise UserError(f"tfds:{dataset} is not an image classification data set: its features are {found}")
    return keys


def _open_folder(place: str, split: str, decoding: Decoding) -> ImageSource:
    listing, folder = within(list_images(Path(place).expanduser()), split)
    place += folder
    by_class = class_folders(listing.names, split, place)
    classes = tuple(sorted(by_class))
    examples = [(str(file), label) for label, name in enumerate(classes) for file in sorted(by_class[name])]
    order = np.random.default_rng(0).permutation(len(examples))
    chosen, labels = zip(*(examples[index] for index in order), strict=True)
    return listed_images(place, listing, chosen, decoding, classes, labels)


def _open_idx(place: str, split: str, decoding: Decoding) -> ImageSource:
    images, labels, file = read_split(Path(place).expanduser(), split)
    classes = tuple(str(digit) for digit in range(max(10, labels.max(initial=0) + 1)))

    def load(indices: np.ndarray) -> tuple[Images, np.ndarray, np.ndarray]:
        chosen = images[indices][..., None].repeat(decoding.channels, axis=-1)
        return chosen, labels[indices], np.ones(len(indices), bool)

    def content() -> str:
        return digest([images.tobytes(), labels.tobytes()])

    return ImageSource(classes, decoding.channels, len(images), load, lambda index: f"{file}[{index}]", content)
