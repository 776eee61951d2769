"""Image files in directories and zip files: SPLIT/CLASS/FILE, or CLASS/FILE with the only split `all`."""

import logging
import os
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from attnjax.data.fingerprint import file_sizes
from attnjax.data.splits import check_split
from attnjax.errors import UserError

IMAGE_SUFFIXES = frozenset([".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"])


class Listing(NamedTuple):
    """The names in a directory or zip file (those of folders end in a slash), and a function that reads a file.

    `sizes(files)` changes when the files do but their names do not: file sizes, or the checksums in a zip.
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


def class_folders(names: list[str], split: str, place: str) -> dict[str, list[PurePosixPath]]:
    """Returns class -> image files of a split, from the names of a listing of `place`.

    UserError if there are no images or both layouts, the split is unknown, two splits differ in their classes, or a
    class folder has no images.
    """
    paths = [PurePosixPath(name) for name in names if not name.endswith("/")]
    files = _image_files([path for path in paths if _visible(path)], place)
    by_class = _of_split(files, split, place)
    _check_none_empty([PurePosixPath(name) for name in names if name.endswith("/")], files, place)
    return by_class


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


def _of_split(files: list[PurePosixPath], split: str, place: str) -> dict[str, list[PurePosixPath]]:
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


def _group(files: list[PurePosixPath], level: int) -> dict[str, list[PurePosixPath]]:
    groups: dict[str, list[PurePosixPath]] = {}
    for file in files:
        groups.setdefault(file.parts[level], []).append(file)
    return groups


def _check_none_empty(folders: list[PurePosixPath], files: list[PurePosixPath], place: str) -> None:
    depth = 1 if len(files[0].parts) == 2 else 2
    filled = {file.parts[:depth] for file in files}
    for folder in folders:
        if len(folder.parts) == depth and folder.parts not in filled and _visible(folder):
            raise UserError(f"{place}: class folder {folder} has no images")
