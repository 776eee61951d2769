"""Image files in directories and zip files: SPLIT/CLASS/FILE, or CLASS/FILE with the only split `all`.

One more folder around either layout, as many archives have, is left out: `within` finds it.
"""

import logging
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from attnjax.data.files import is_utf8
from attnjax.data.fingerprint import file_contents
from attnjax.data.images.decode import check_bytes
from attnjax.data.splits import check_split
from attnjax.errors import UserError
from attnjax.files import reason

IMAGE_SUFFIXES = frozenset([".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"])
VALIDATION_NAMES = ("validation", "valid", "val", "dev")
_SPLIT_NAMES = frozenset(["train", "training", "test", "testing", *VALIDATION_NAMES])


class Listing(NamedTuple):
    """The names in a directory or zip file (those of folders end in a slash), and a function that reads a file.

    `contents(files)` are values that change with what the files hold; those of a zip are its checksums.
    """

    names: list[str]
    read: Callable[[str], bytes]
    contents: Callable[[Sequence[str]], list[object]]


def list_images(path: Path) -> Listing:
    """Lists a directory or zip file; UserError if it is neither, or has an image that is a link to nothing."""
    return _list_zip(path) if path.is_file() else _list_directory(path)


def _list_directory(root: Path) -> Listing:
    if not root.is_dir():
        raise UserError(f"no such image folder: {root}")

    def read(name: str) -> bytes:
        check_bytes((root / name).stat().st_size)
        return (root / name).read_bytes()

    try:
        names = list(_walk(root, PurePosixPath(), frozenset()))
    except OSError as error:
        raise UserError(f"cannot read folder {error.filename}: {reason(error)}") from error
    return Listing(names, read, lambda files: file_contents([root / file for file in files]))


def _walk(root: Path, folder: PurePosixPath, above: frozenset[tuple[int, int]]) -> Iterator[str]:
    """Yields the names below a folder; `above` has device and inode of the folders that it is in."""
    status = (root / folder).stat()
    if (own := (status.st_dev, status.st_ino)) in above:
        raise UserError(f"{root / folder} is a link to a folder that it is in: remove it")
    yield f"{folder}/"
    for entry in sorted(os.scandir(root / folder), key=lambda entry: entry.name):
        name = folder / entry.name
        if entry.is_dir():
            yield from _walk(root, name, above | {own})
        elif entry.is_file():
            yield str(name)
        elif is_image(name) and _visible(name):
            what = "a link to a file that is missing" if entry.is_symlink() else "not a file"
            raise UserError(f"image {root / name} is {what}")


def image_files(path: Path) -> list[Path]:
    """Returns the image files of a folder and those in it, sorted, or the path itself if it is not a folder.

    UserError if the folder has no images.
    """
    if not path.is_dir():
        return [path]
    names = [name for name in _list_directory(path).names if is_image(file := PurePosixPath(name)) and _visible(file)]
    if not names:
        raise UserError(f"no images in {path}: they should end in .png, .jpg, ...")
    return [path / name for name in sorted(names)]


def is_image(path: PurePosixPath) -> bool:
    """Returns whether a file is an image by its name."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def _list_zip(path: Path) -> Listing:
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile:
        raise UserError(f"{path} is neither a folder nor a zip file") from None

    def read(name: str) -> bytes:
        check_bytes(archive.getinfo(name).file_size)
        return archive.read(name)

    return Listing(archive.namelist(), read, lambda files: [archive.getinfo(file).CRC for file in files])


def within(listing: Listing, split: str) -> tuple[Listing, str]:
    """Returns the listing of the layout's own folder, and that folder with a slash before it, "" if it is the root.

    A single folder around the layout is not called like `split` or another usual split, but has folders that are, or
    only class folders.
    """
    files = _images(listing.names)
    tops = {file.parts[0] for file in files}
    inner = {file.parts[1] for file in files if len(file.parts) > 2}
    whole = len(tops) == 1 and all(len(file.parts) > 2 for file in files)
    if not whole or tops & {split, *_SPLIT_NAMES} or not (inner & _SPLIT_NAMES or {len(f.parts) for f in files} == {3}):
        return listing, ""
    prefix = f"{tops.pop()}/"
    names = [name.removeprefix(prefix) for name in listing.names if name.startswith(prefix) and name != prefix]

    def contents(files: Sequence[str]) -> list[object]:
        return listing.contents([prefix + file for file in files])

    return Listing(names, lambda name: listing.read(prefix + name), contents), f"/{prefix[:-1]}"


def folder_splits(listing: Listing) -> tuple[str, ...]:
    """Returns the names of a listing's splits, `("all",)` for CLASS/FILE."""
    files = _images(within(listing, "")[0].names)
    return ("all",) if {len(file.parts) for file in files} == {2} else tuple(sorted({file.parts[0] for file in files}))


def _images(names: list[str]) -> list[PurePosixPath]:
    paths = (PurePosixPath(name) for name in names if not name.endswith("/"))
    return [path for path in paths if is_image(path) and _visible(path) and len(path.parts) > 1]


def class_folders(names: list[str], split: str, place: str) -> dict[str, list[PurePosixPath]]:
    """Returns class -> image files of a split, from the names of a listing of `place`.

    UserError if there are no images or both layouts, the split is unknown, two splits differ in their classes, a class
    folder has no images, or a name is not UTF-8.
    """
    files = _images(names)
    _check_files(files, names, place)
    by_class = _of_split(files, split, place)
    _check_none_empty([PurePosixPath(name) for name in names if name.endswith("/")], files, place)
    return by_class


def _visible(path: PurePosixPath) -> bool:
    # Desktop systems leave hidden files and folders called __MACOSX.
    return not any(part.startswith((".", "__MACOSX")) for part in path.parts)


def _check_files(files: list[PurePosixPath], names: list[str], place: str) -> None:
    if not files:
        raise UserError(f"no images in {place}: expected SPLIT/CLASS/FILE, with files ending in .png, .jpg, ...")
    for file in files:
        if not is_utf8(str(file)):
            raise UserError(f"{place}: the name of image {str(file)!a} is not UTF-8: rename it")
    paths = {PurePosixPath(name) for name in names if not name.endswith("/")}
    if others := sorted(str(path) for path in paths.difference(files) if _visible(path)):
        logging.warning("%s: %d files are not images in class folders, such as %a", place, len(others), others[0])


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
