"""Sentence pairs from parallel text files, two-column TSV files and TFDS translation data sets."""

import functools
import logging
import re
import zipfile
import zlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from attnjax.data import files
from attnjax.data.fingerprint import digest
from attnjax.data.splits import Split, check_not_empty, check_split
from attnjax.data.tfds import open_prepared
from attnjax.errors import UserError, nearest
from attnjax.files import reason

_TEXT_FILE = re.compile(r"(?P<split>\w[\w.-]*)\.(?P<language>[\w-]+)")
_TSV = re.compile(r"(?P<file>.+):(?P<first>[\w-]+),(?P<second>[\w-]+)")


@dataclass(frozen=True)
class PairSource:
    """Sentence pairs in memory: `target[i]` is the translation of `source[i]`.

    `languages` are those of source and target; `name(index)` is where a pair comes from, for messages.
    """

    languages: tuple[str, str]
    source: Sequence[str]
    target: Sequence[str]
    name: Callable[[int], str]

    def __len__(self) -> int:
        return len(self.source)

    def content(self) -> str:
        """Returns a digest of all sentences."""
        return digest([*self.source, *self.target])


def open_pairs(
    spec: str, split: str, *, source: str, target: str, data_dir: str = "", skip_blank: bool = False
) -> PairSource:
    """Opens sentence pairs for translation from language `source` to language `target`.

    Text files are UTF-8. Lines end only at line feeds; whitespace around sentences is removed.

    `spec` is one of
        `text:FOLDER`: files `SPLIT.LANGUAGE` or `SPLIT.LANGUAGE.gz` whose lines are translations of each other;
        `tsv:FILE:FIRST,SECOND`: lines of two tab-separated sentences in the languages FIRST and SECOND, as plain text,
            gzipped, or the only file of a .zip whose name does not begin with `_` or `.`; further columns (Tatoeba's
            attributions) are ignored;
        `tfds:NAME[/CONFIG][:VERSION]`: a data set of Translation features, prepared in `data_dir` or one of ours.
    `split` is in TFDS's syntax (see `splits`). Adjacent slices are disjoint. A TSV file has the only split `all`, in a
    fixed pseudo-random order of the distinct source sentences, each with all its translations. A bound that would
    separate these moves to the first of them, so that no source sentence is in two slices (a target sentence may be).

    `skip_blank` leaves out pairs with a blank side before slicing and logs their number, instead of raising. UserError
    if the spec, split or a language is unknown, a sentence is blank, or data are damaged, misaligned or empty.
    """
    kind, _, place = spec.partition(":")
    open_tfds = functools.partial(_open_tfds, data_dir=data_dir)
    openers: dict[str, Callable[..., PairSource]] = {"text": _open_text, "tsv": _open_tsv, "tfds": open_tfds}
    if kind not in openers or not place:
        raise UserError(f"text source '{spec}' is not text:FOLDER, tsv:FILE:FIRST,SECOND or tfds:NAME")
    if source == target or not source or not target:
        raise UserError(f"source language '{source}' and target language '{target}' should be two different languages")
    part = Split.parse(split)
    with files.opening(spec):
        pairs = openers[kind](place, part.name, (source, target))
    pairs = _without_blanks(pairs, spec, skip_blank)
    if kind == "tsv":
        pairs = _by_sentence(pairs)
    start, stop = part.bounds(len(pairs))
    if kind == "tsv":
        start, stop = (_first_of_sentence(pairs.source, bound) for bound in (start, stop))
        check_not_empty(start, stop, len(pairs))
    return _take(pairs, range(start, stop))


def _take(pairs: PairSource, rows: Sequence[int]) -> PairSource:
    return PairSource(
        pairs.languages,
        [pairs.source[row] for row in rows],
        [pairs.target[row] for row in rows],
        lambda index: pairs.name(rows[index]),
    )


def _without_blanks(pairs: PairSource, spec: str, skip_blank: bool) -> PairSource:
    blank = [row for row in range(len(pairs)) if not (pairs.source[row] and pairs.target[row])]
    if not blank:
        return pairs
    if not skip_blank:
        side = pairs.languages[1 if pairs.source[blank[0]] else 0]
        where = f"{pairs.name(blank[0])} has a blank sentence ('{side}'), like {len(blank)} of {len(pairs)} pairs"
        raise UserError(f"{where}: remove these pairs, or set skip_blank")
    if len(blank) == len(pairs):
        raise UserError(f"{spec} is empty: all of its {len(blank)} pairs have a blank side")
    logging.warning("%s: left out %d of %d pairs, because they have a blank side", spec, len(blank), len(pairs))
    return _take(pairs, [row for row in range(len(pairs)) if pairs.source[row] and pairs.target[row]])


def _by_sentence(pairs: PairSource) -> PairSource:
    """Shuffles the distinct source sentences in a fixed pseudo-random order, keeping the pairs of each together."""
    rows: dict[str, list[int]] = {}
    for row, sentence in enumerate(pairs.source):
        rows.setdefault(sentence, []).append(row)
    groups = list(rows.values())
    # NumPy guarantees the streams of RandomState forever, unlike those of default_rng.
    order = np.random.RandomState(0).permutation(len(groups))
    return _take(pairs, [row for group in order for row in groups[group]])


def _first_of_sentence(sentences: Sequence[str], bound: int) -> int:
    while 0 < bound < len(sentences) and sentences[bound] == sentences[bound - 1]:
        bound -= 1
    return bound


def _open_text(place: str, split: str, languages: tuple[str, str]) -> PairSource:
    folder = Path(place).expanduser()
    paths = [_text_file(folder, split, language) for language in languages]
    source, target = ([line.strip() for line in files.read_lines(path)] for path in paths)
    if len(source) != len(target):
        raise UserError(
            f"{paths[0]} has {len(source)} lines but {paths[1]} has {len(target)}: "
            "they should have one sentence per line, translations of each other"
        )
    return PairSource(languages, source, target, lambda index: f"{paths[0]} line {index + 1}")


def _text_file(folder: Path, split: str, language: str) -> Path:
    if not folder.is_dir():
        raise UserError(f"no such folder of text files: {folder}")
    if path := files.find(folder / f"{split}.{language}"):
        return path
    names = [path.name.removesuffix(".gz") for path in folder.iterdir() if path.is_file()]
    found = [match for match in map(_TEXT_FILE.fullmatch, names) if match]
    if not found:
        raise UserError(f"no text files in {folder}: they should be named SPLIT.LANGUAGE or SPLIT.LANGUAGE.gz")
    check_split(split, {match["split"] for match in found}, str(folder))
    known = {match["language"] for match in found if match["split"] == split}
    raise UserError(f"{folder} has no language '{language}' in split '{split}': {nearest(language, known)}")


def _open_tsv(place: str, split: str, languages: tuple[str, str]) -> PairSource:
    if not (match := _TSV.fullmatch(place)):
        right = "tsv:FILE:FIRST,SECOND, as in a.tsv:en,de"
        raise UserError(f"'tsv:{place}' does not name its two languages: write {right}")
    check_split(split, ["all"], f"tsv:{place}")
    columns = (match["first"], match["second"])
    _check_languages(languages, columns, f"tsv:{place}")
    path = Path(match["file"]).expanduser()
    data, where = _read_zipped(path) if path.suffix == ".zip" else (files.read(path), str(path))
    rows = [line.split("\t") for line in files.lines(data, where)]
    for number, row in enumerate(rows, 1):
        if len(row) < 2 and row[0].strip():
            raise UserError(f"{where} line {number} has no tab: it should be two sentences separated by a tab")
        row.append("")  # a blank line has two blank sides
    source, target = ([row[columns.index(language)].strip() for row in rows] for language in languages)
    return PairSource(languages, source, target, lambda index: f"{where} line {index + 1}")


def _read_zipped(path: Path) -> tuple[bytes, str]:
    """Returns the contents and the path of the only text file in an archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [PurePosixPath(name) for name in archive.namelist() if not name.endswith("/")]
            # Tatoeba's archives contain _about.txt; desktop systems add __MACOSX and hidden files.
            names = [name for name in names if not any(part.startswith(("_", ".")) for part in name.parts)]
            if len(names) != 1:
                listed = ", ".join(map(str, names)) or "none"
                raise UserError(f"{path} should contain one text file, besides those named _...; it has: {listed}")
            files.check_bytes(archive.getinfo(str(names[0])).file_size, path)
            return archive.read(str(names[0])), f"{path}/{names[0]}"
    except FileNotFoundError:
        raise UserError(f"no text file '{path}'") from None
    except (zipfile.BadZipFile, OSError, EOFError, RuntimeError, zlib.error) as error:  # RuntimeError: encrypted
        raise UserError(f"cannot read {path}: {error}") from error


def _open_tfds(dataset: str, split: str, languages: tuple[str, str], data_dir: str) -> PairSource:
    import tensorflow_datasets as tfds

    info = (builder := open_prepared(dataset, data_dir)).info
    check_split(split, info.splits, f"tfds:{dataset}")
    if not isinstance(info.features, tfds.features.Translation):
        found = type(info.features).__name__
        raise UserError(f"tfds:{dataset} is not a translation data set: its features are {found}")
    _check_languages(languages, info.features, f"tfds:{dataset}")
    try:
        records = [[record[language] for language in languages] for record in builder.as_data_source(split)]
    except (OSError, ValueError, IndexError, RuntimeError) as error:
        raise UserError(f"cannot read tfds:{dataset} {split}: {reason(error)}") from error
    source, target = ([sides[side].decode("utf-8").strip() for sides in records] for side in (0, 1))
    return PairSource(languages, source, target, lambda index: f"{info.full_name} {split}[{index}]")


def _check_languages(languages: tuple[str, str], known: Collection[str], place: str) -> None:
    for language in languages:
        if language not in known:
            raise UserError(f"{place} has no language '{language}': {nearest(language, known)}")
