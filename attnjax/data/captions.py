"""Random-access sources of images with text: captions, or sentence pairs that describe an image."""

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from attnjax.data.fingerprint import digest
from attnjax.data.images.sources import CACHE_BYTES, ImageSource, decoded_images, list_images
from attnjax.data.splits import check_not_empty, check_split, parse_split, position
from attnjax.data.text.sources import PairSource, lines, open_pairs, read_text
from attnjax.errors import UserError

FLICKR8K_SPLITS = ("train", "dev", "test")
_FLICKR8K_IMAGES = ("images.zip", "Flickr8k_Dataset.zip", "images", "Flicker8k_Dataset", "Flickr8k_Dataset")
_FLICKR8K_TEXT = ("", "Flickr8k_text")
_CAPTION_KEY = re.compile(r"(?P<image>.+)#\d+")


@dataclass(frozen=True)
class CaptionSource:
    """Images with texts: image i has the references `references[i]`, one or more, and perhaps a source sentence.

    `images` are as long as the rest; their labels mean nothing. `sources` is None where there is nothing to read but
    the image. `name(index)` says for messages where an example comes from.
    """

    languages: tuple[str, str]
    images: ImageSource
    sources: Sequence[str] | None
    references: Sequence[Sequence[str]]
    name: Callable[[int], str]

    def __len__(self) -> int:
        return len(self.references)

    def content(self) -> str:
        """Returns a digest of all sentences, and of the names and sizes of the images."""
        references = [text for texts in self.references for text in (len(texts), *texts)]
        return digest([self.images.content(), *(self.sources or ()), *references])

    def pairs(self) -> tuple[PairSource, np.ndarray]:
        """Returns a pair to learn from for each reference, and the example (P,) that each belongs to.

        The source sentence is empty where there is none.
        """
        example = np.repeat(np.arange(len(self)), [len(texts) for texts in self.references])
        sources = [self.sources[i] if self.sources else "" for i in example]
        targets = [text for texts in self.references for text in texts]
        return PairSource(self.languages, sources, targets, lambda index: self.name(example[index])), example


def open_captions(
    spec: str,
    split: str,
    *,
    languages: tuple[str, str],
    images: str = "",
    image_lines: str = "",
    channels: int = 3,
    data_dir: str = "",
    skip_corrupt: bool = False,
    skip_blank: bool = False,
) -> CaptionSource:
    """Opens the images and texts that `spec` names.

    `spec` is one of
      `flickr8k:FOLDER`: Flickr8k (Hodosh et al. 2013) as it is published: Flickr8k.token.txt and
          Flickr_8k.{train,dev,test}Images.txt, gzipped or not, in the folder or its Flickr8k_text; the images, of any
          size, in images.zip, Flickr8k_Dataset.zip, or folders named so. Splits train, dev, test, by image;
      `captions:FOLDER`: your own: SPLIT.tsv, gzipped or not, with lines `FILE TAB CAPTION`, as many as an image has
          captions; FILE is looked for in the folder, or in its images.zip;
      a source of parallel text (see `open_pairs`), with `images`, a folder or zip of files, and `image_lines`, a TSV
          of lines `SPLIT TAB LINE TAB FILE`, LINE from 0: the pairs that have an image are the examples, each with one
          reference. FILE may be a path, or a file's name where that is the only one of this name.

    `languages` are from and to, like ("image", "en") or ("en", "de"); `split` is TFDS's syntax, and slices count
    images. The decoded images have `channels` and are kept in memory up to `sources.CACHE_BYTES`. A corrupt image is
    a UserError that names it when it is read; with `skip_corrupt` it is grey, and logged. `data_dir` is where TFDS's
    sets of parallel text are prepared.

    Raises:
        UserError: a spec or split that is not to be had; an image that is missing or has no caption, a blank caption
            (unless `skip_blank`), a damaged or misshapen file.
    """
    kind, _, place = spec.partition(":")
    name, start, stop = parse_split(split)
    if kind in _KINDS and place:
        folder = Path(place).expanduser()
        if not folder.is_dir():
            raise UserError(f"no such folder: {folder}")
        found = _without_blanks(_KINDS[kind](folder, name), skip_blank)
    elif images and image_lines:
        if skip_blank:
            raise UserError("data.skip_blank would move the lines of text that data.image_lines counts; leave it out")
        pairs = open_pairs(spec, name, source=languages[0], target=languages[1], data_dir=data_dir)
        found = _of_pairs(pairs, Path(image_lines).expanduser(), name, Path(images).expanduser())
    else:
        raise UserError(
            f"caption source '{spec}' is not flickr8k:FOLDER or captions:FOLDER, nor a source of parallel text with "
            "data.images and data.image_lines"
        )
    count = len(found.files)
    start, stop = position(start, count, 0, split), position(stop, count, count, split)
    check_not_empty(start, stop, count)
    part = slice(start, stop)
    return CaptionSource(
        languages,
        _open_images(found.images, found.files[part], channels, skip_corrupt),
        found.sources and found.sources[part],
        found.texts[part],
        lambda index: found.names[start + int(index)],
    )


def shuffled(source: CaptionSource) -> CaptionSource:
    """Returns the examples with each other's images: example i gets that of one far from it, no one its own."""
    others = (np.arange(len(source)) + max(1, len(source) // 2)) % len(source)
    images = source.images
    swapped = dataclasses.replace(images, load=lambda indices: images.load(others[np.asarray(indices)]))
    return dataclasses.replace(source, images=swapped)


# Files


class _Split(NamedTuple):
    """A split as files tell of it: where the images are, and by example its file, texts, name, and perhaps source."""

    images: Path
    files: list[str]
    texts: list[list[str]]
    names: list[str]
    sources: list[str] | None = None


def _captions(images: Path, captions: dict[str, list[str]], where: str) -> _Split:
    return _Split(images, list(captions), list(captions.values()), [f"{where} {file}" for file in captions])


def _flickr8k(folder: Path, split: str) -> _Split:
    check_split(split, FLICKR8K_SPLITS, f"flickr8k:{folder}")
    wanted = [line.strip() for line in _text_lines(folder, f"Flickr_8k.{split}Images.txt")]
    captions = {name: [] for name in wanted if name}
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
            return _captions(folder / place, captions, f"flickr8k {split}")
    raise UserError(f"{folder} has no images: it should hold one of {', '.join(_FLICKR8K_IMAGES)}")


def _text_lines(folder: Path, name: str) -> list[str]:
    for place in _FLICKR8K_TEXT:
        for path in (folder / place / name, folder / place / f"{name}.gz"):
            if path.is_file():
                return lines(read_text(path), str(path))
    raise UserError(f"{folder} has no {name}, gzipped (.gz) or not")


def _own(folder: Path, split: str) -> _Split:
    tables = {path.name.removesuffix(".gz").removesuffix(".tsv"): path for path in sorted(folder.glob("*.tsv*"))}
    if not tables:
        raise UserError(f"{folder} has no captions: it should hold SPLIT.tsv with lines of FILE, a tab, a caption")
    check_split(split, tables, str(folder))
    captions = {}
    for number, row in _rows(tables[split], columns=2):
        captions.setdefault(row[0], []).append(row[1])
        if not row[0]:
            raise UserError(f"{tables[split]} line {number} names no image file")
    archive = folder / "images.zip"
    return _captions(archive if archive.is_file() else folder, captions, str(tables[split]))


_KINDS = {"flickr8k": _flickr8k, "captions": _own}


def _of_pairs(pairs: PairSource, table: Path, split: str, images: Path) -> _Split:
    files = _image_lines(table, split, len(pairs))
    return _Split(
        images,
        list(files.values()),
        [[pairs.target[row]] for row in files],
        [pairs.name(row) for row in files],
        [pairs.source[row] for row in files],
    )


def _rows(path: Path, columns: int):
    """Yields the number and the columns of each line of a TSV."""
    for number, line in enumerate(lines(read_text(path), str(path)), 1):
        row = [column.strip() for column in line.split("\t")]
        if len(row) != columns:
            raise UserError(f"{path} line {number} has {len(row)} columns: it should have {columns}, with tabs between")
        yield number, row


def _image_lines(path: Path, split: str, count: int) -> dict[int, str]:
    """Returns the image file of each line, from 0, that has one."""
    found = {}
    for number, (name, line, file) in _rows(path, columns=3):
        if name != split:
            continue
        if not line.isdigit() or int(line) >= count:
            raise UserError(f"{path} line {number}: '{line}' is no line of split '{split}', which has {count}, from 0")
        found[int(line)] = file
    if not found:
        raise UserError(f"{path} has no lines of split '{split}'")
    return found


def _without_blanks(found: _Split, skip: bool) -> _Split:
    for name, texts in zip(found.names, found.texts, strict=True):
        if not all(texts) and not skip:
            raise UserError(f"{name} has a caption without text: remove it, or set data.skip_blank")
    kept = [i for i, texts in enumerate(found.texts) if any(texts)]
    return found._replace(
        files=[found.files[i] for i in kept],
        texts=[[text for text in found.texts[i] if text] for i in kept],
        names=[found.names[i] for i in kept],
    )


def _open_images(place: Path, files: Sequence[str], channels: int, skip_corrupt: bool) -> ImageSource:
    """Returns an ImageSource of these files, which may be named by path or by a name of its own."""
    names, read, sizes = list_images(place)
    there = set(names)
    counts = Counter(PurePosixPath(name).name for name in names)
    by_name = {PurePosixPath(name).name: name for name in names}
    paths = []
    for file in files:
        path = file if file in there else by_name.get(file) if counts[file] == 1 else None
        if path is None:
            several = " (several files have this name: give the path)" if counts[file] > 1 else ""
            raise UserError(f"there is no image {file} in {place}{several}")
        paths.append(path)
    return decoded_images(
        (),
        len(paths),
        lambda index: (read(paths[index]), 0),
        lambda index: f"{place}/{paths[index]}",
        lambda: digest([*paths, *sizes(paths)]),
        channels=channels,
        skip_corrupt=skip_corrupt,
        cache_bytes=CACHE_BYTES,
    )
