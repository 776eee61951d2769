"""Images with text: captions, or sentence pairs that describe an image."""

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from attnjax.data import files
from attnjax.data.fingerprint import digest
from attnjax.data.images.augment import Augmentation
from attnjax.data.images.folders import list_images
from attnjax.data.images.format import ImageFormat, check_channels
from attnjax.data.images.pipeline import training_batch
from attnjax.data.images.sources import MAX_SKIPPED, Decoding, ImageSource, listed_images
from attnjax.data.splits import Split, check_split
from attnjax.data.text.pipeline import Attach, Batch
from attnjax.data.text.sources import PairSource, open_pairs
from attnjax.errors import UserError

FLICKR8K_SPLITS = ("train", "dev", "test")
_FLICKR8K_IMAGES = ("images.zip", "Flickr8k_Dataset.zip", "images", "Flicker8k_Dataset", "Flickr8k_Dataset")
_CAPTION_KEY = re.compile(r"(?P<image>.+)#\d+")


@dataclass(frozen=True)
class CaptionSource:
    """Images with texts: image i has one or more references, `references[i]`, and possibly a source sentence.

    The labels of `images` are 0. `sources` is None if the image is the only input. `name(index)` is for messages.
    """

    languages: tuple[str, str]
    images: ImageSource
    sources: Sequence[str] | None
    references: Sequence[Sequence[str]]
    name: Callable[[int], str]

    def __len__(self) -> int:
        return len(self.references)

    def content(self) -> str:
        """Returns a digest of all sentences and of the images' names and sizes."""
        references = [text for texts in self.references for text in (len(texts), *texts)]
        return digest([self.images.content(), *(self.sources or ()), *references])

    def pairs(self) -> tuple[PairSource, np.ndarray]:
        """Returns one training pair per reference, and the example, int `(P,)`, that each belongs to.

        Without source sentences, those of the pairs are empty.
        """
        example = np.repeat(np.arange(len(self)), [len(texts) for texts in self.references])
        sources = [self.sources[i] if self.sources else "" for i in example.tolist()]
        targets = [text for texts in self.references for text in texts]
        return PairSource(self.languages, sources, targets, lambda index: self.name(int(example[index]))), example


@dataclass(frozen=True)
class CaptionOptions:
    """How images with text are opened.

    Attributes:
        languages: of source and target, like ("image", "en") or ("en", "de").
        images: with parallel text, the directory or zip file of the images.
        image_lines: with parallel text, a TSV of lines `SPLIT TAB LINE TAB FILE`, LINE from 0. FILE is a path in
            `images`, or a file name that occurs there only once.
        data_dir: where TFDS data sets of parallel text are prepared.
        channels: of the decoded images, 1 (grey) or 3 (RGB).
        skip_corrupt: log corrupt images and mask them, instead of raising.
        max_skipped: the share of corrupt images above which it is an error all the same.
        skip_blank: leave out blank captions, instead of raising.
    """

    languages: tuple[str, str]
    images: str = ""
    image_lines: str = ""
    data_dir: str = ""
    channels: int = 3
    skip_corrupt: bool = False
    max_skipped: float = MAX_SKIPPED
    skip_blank: bool = False

    def __post_init__(self):
        if len(self.languages) != 2:
            raise UserError(f"data.languages={tuple(self.languages)}: it should be two, like ('image', 'en')")
        check_channels(self.channels)


def open_captions(spec: str, split: str, options: CaptionOptions) -> CaptionSource:
    """Opens the images and texts of a data set.

    `spec` is one of
        `flickr8k:FOLDER`: Flickr8k (Hodosh et al. 2013) as published: Flickr8k.token.txt and
            Flickr_8k.{train,dev,test}Images.txt, gzipped or not, in the folder or its Flickr8k_text; the images, of any
            size, in images.zip, Flickr8k_Dataset.zip, or folders of these names. Splits train, dev, test;
        `captions:FOLDER`: your own SPLIT.tsv, gzipped or not, with a line `FILE TAB CAPTION` per caption; FILE is in
            the folder, or in its images.zip;
        a source of parallel text (see `open_pairs`), with `options.images` and `options.image_lines`: the pairs that
            have an image are the examples, each with one reference.
    `split` is in TFDS's syntax (see `splits`); slices count images.

    UserError if the spec or split is unknown, an image or caption is missing or a caption blank, or a file is damaged
    or malformed; from `images.load`, if an image is corrupt.
    """
    kind, _, place = spec.partition(":")
    part = Split.parse(split)
    parallel = kind not in _KINDS or not place
    if not parallel:
        folder = Path(place).expanduser()
        with files.opening(spec):
            if not folder.is_dir():
                raise UserError(f"no such folder: {folder}")
            images, captions, where = _KINDS[kind](folder, part.name)
        examples = _examples(captions, where, options.skip_blank)
    elif options.images and options.image_lines:
        images, examples = Path(options.images).expanduser(), _of_pairs(spec, part.name, options)
    else:
        parallel_text = "a source of parallel text with data.images and data.image_lines"
        raise UserError(f"caption source '{spec}' is not flickr8k:FOLDER or captions:FOLDER, nor {parallel_text}")
    examples = examples[slice(*part.bounds(len(examples)))]
    decoding = Decoding(options.channels, options.skip_corrupt, options.max_skipped)
    return CaptionSource(
        options.languages,
        _open_images(images, [example.file for example in examples], decoding),
        [example.source for example in examples] if parallel else None,
        [example.texts for example in examples],
        lambda index: examples[index].name,
    )


def caption_splits(spec: str) -> tuple[str, ...]:
    """Returns the names of the splits of `flickr8k:FOLDER` or `captions:FOLDER`."""
    kind, _, place = spec.partition(":")
    return FLICKR8K_SPLITS if kind == "flickr8k" else tuple(_tables(Path(place).expanduser()))


def shuffled(source: CaptionSource) -> CaptionSource:
    """Returns the examples with their images permuted: each gets the image of a distant example, never its own."""
    others = (np.arange(len(source)) + max(1, len(source) // 2)) % len(source)
    images = source.images
    swapped = dataclasses.replace(images, load=lambda indices: images.load(others[np.asarray(indices)]))
    return dataclasses.replace(source, images=swapped)


def select(source: CaptionSource, chosen: np.ndarray) -> CaptionSource:
    """Returns the examples `chosen`, int `(N,)`, of a source."""
    images, indices = source.images, chosen.tolist()
    return dataclasses.replace(
        source,
        images=dataclasses.replace(
            images,
            length=len(chosen),
            load=lambda rows: images.load(chosen[np.asarray(rows)]),
            name=lambda row: images.name(indices[row]),
        ),
        sources=source.sources and [source.sources[i] for i in indices],
        references=[source.references[i] for i in indices],
        name=lambda row: source.name(indices[row]),
    )


def training_images(
    source: ImageSource, index: np.ndarray, image_format: ImageFormat, augmentation: Augmentation, workers: int = 0
) -> Attach:
    """Returns a function that adds images, as `training_batch` does, to batches of pairs; pair i has `index[i]`.

    UserError if the augmentation mixes or repeats images, which needs class labels.
    """
    if augmentation.mixes or augmentation.repeats > 1:
        raise UserError("mixup, cutmix and repeats are for classes; a text cannot be mixed")

    def attach(pairs: np.ndarray, rows: slice, rng: np.random.Generator) -> Batch:
        images = np.where(pairs < 0, -1, index[pairs])
        batch = training_batch(source, images, rows, rng, image_format, augmentation, workers)
        del batch["label"]
        return batch

    return attach


class _Example(NamedTuple):
    """An image file with its texts; `name` is for messages, and only an example of parallel text has a source."""

    file: str
    texts: list[str]
    name: str
    source: str = ""


def _examples(captions: dict[str, list[str]], where: str, skip_blank: bool) -> list[_Example]:
    for file, texts in captions.items():
        if not all(texts) and not skip_blank:
            raise UserError(f"{where} {file} has a caption without text: remove it, or set data.skip_blank")
    kept = {file: [text for text in texts if text] for file, texts in captions.items()}
    return [_Example(file, texts, f"{where} {file}") for file, texts in kept.items() if texts]


def _flickr8k(folder: Path, split: str) -> tuple[Path, dict[str, list[str]], str]:
    """Returns the place of the images, the captions of each image file, and what they are called in messages."""
    check_split(split, FLICKR8K_SPLITS, f"flickr8k:{folder}")
    wanted = [line.strip() for line in _text_lines(folder, f"Flickr_8k.{split}Images.txt")]
    captions: dict[str, list[str]] = {name: [] for name in wanted if name}
    for number, line in enumerate(_text_lines(folder, "Flickr8k.token.txt"), 1):
        key, tab, caption = line.partition("\t")
        if not (match := _CAPTION_KEY.fullmatch(key)) or not tab:
            raise UserError(f"{folder}/Flickr8k.token.txt line {number} is not FILE#NUMBER, a tab, and a caption")
        if match["image"] in captions:
            captions[match["image"]].append(caption.strip())
    for name, texts in captions.items():
        if not texts:
            raise UserError(f"{folder}: image {name} of split '{split}' has no caption in Flickr8k.token.txt")
    for place in _FLICKR8K_IMAGES:
        if (folder / place).exists():
            return folder / place, captions, f"flickr8k {split}"
    raise UserError(f"{folder} has no images: it should contain one of {', '.join(_FLICKR8K_IMAGES)}")


def _text_lines(folder: Path, name: str) -> list[str]:
    for place in (folder, folder / "Flickr8k_text"):
        if path := files.find(place / name):
            return files.read_lines(path)
    raise UserError(f"{folder} has no {name}, gzipped (.gz) or not")


def _tables(folder: Path) -> dict[str, Path]:
    """Returns split -> file of captions."""
    tables = {path.name.removesuffix(".gz").removesuffix(".tsv"): path for path in sorted(folder.glob("*.tsv*"))}
    if not tables:
        raise UserError(f"{folder} has no captions: it should contain SPLIT.tsv with lines of FILE, a tab, a caption")
    return tables


def _own(folder: Path, split: str) -> tuple[Path, dict[str, list[str]], str]:
    tables = _tables(folder)
    check_split(split, tables, str(folder))
    captions: dict[str, list[str]] = {}
    for number, row in _rows(tables[split], columns=2):
        captions.setdefault(row[0], []).append(row[1])
        if not row[0]:
            raise UserError(f"{tables[split]} line {number} names no image file")
    archive = folder / "images.zip"
    return archive if archive.is_file() else folder, captions, str(tables[split])


_KINDS = {"flickr8k": _flickr8k, "captions": _own}


def _of_pairs(spec: str, split: str, options: CaptionOptions) -> list[_Example]:
    if options.skip_blank:
        raise UserError("data.skip_blank would move the lines of text that data.image_lines counts; leave it out")
    source, target = options.languages
    pairs = open_pairs(spec, split, source=source, target=target, data_dir=options.data_dir)
    images = _image_lines(Path(options.image_lines).expanduser(), split, len(pairs))
    return [_Example(file, [pairs.target[row]], pairs.name(row), pairs.source[row]) for row, file in images.items()]


def _rows(path: Path, columns: int) -> Iterator[tuple[int, list[str]]]:
    """Yields the number, from 1, and the columns of each line of a TSV."""
    for number, line in enumerate(files.read_lines(path), 1):
        row = [column.strip() for column in line.split("\t")]
        if len(row) != columns:
            raise UserError(f"{path} line {number} has {len(row)} columns: it should have {columns}, with tabs between")
        yield number, row


def _image_lines(path: Path, split: str, count: int) -> dict[int, str]:
    """Returns a mapping from line numbers of the text, from 0, to image files."""
    rows = [(number, line, file) for number, (name, line, file) in _rows(path, columns=3) if name == split]
    if not rows:
        raise UserError(f"{path} has no lines of split '{split}'")
    for number, line, _ in rows:
        if not line.isdigit() or int(line) >= count:
            wrong = f"'{line}' is not a line of split '{split}', which has {count}, from 0"
            raise UserError(f"{path} line {number}: {wrong}")
    return {int(line): file for _, line, file in rows}


def _open_images(place: Path, wanted: Sequence[str], decoding: Decoding) -> ImageSource:
    """Opens image files given by path or by unique file name."""
    with files.opening(str(place)):
        listing = list_images(place)
    there = set(listing.names)
    counts = Counter(PurePosixPath(name).name for name in listing.names)
    by_name = {PurePosixPath(name).name: name for name in listing.names}
    paths = []
    for file in wanted:
        path = file if file in there else by_name.get(file) if counts[file] == 1 else None
        if path is None:
            if counts[file] > 1:
                raise UserError(f"'{place}' has {counts[file]} images named {file}: give the path of one")
            raise UserError(f"'{place}' has no image {file}")
        paths.append(path)
    return listed_images(str(place), listing, paths, decoding)
