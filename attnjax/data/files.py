"""Files on disk, gzipped or not."""

import contextlib
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path

from attnjax.errors import UserError
from attnjax.files import reason

MAX_BYTES = 2**30  # of a decompressed file: a few bytes can hold any number of equal ones


@contextlib.contextmanager
def opening(spec: str) -> Iterator[None]:
    """Turns an OSError raised in the block, such as a denied permission, into a UserError that names the source."""
    if not is_utf8(spec):
        raise UserError(f"{spec!a} is not UTF-8: rename the folder or file")
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot open '{spec}': {reason(error)}") from error


def is_utf8(name: str) -> bool:
    """Returns whether a name from the disk or the command line can be printed; Python reads any bytes as names."""
    return name.encode(errors="replace").decode() == name


def find(path: Path) -> Path | None:
    """Returns the path of this file, or of the same file with .gz appended, or None if there is neither."""
    return next((file for file in (path, path.with_name(f"{path.name}.gz")) if file.is_file()), None)


def read(path: Path) -> bytes:
    """Reads a file, decompressing .gz; UserError if it is missing, damaged, or larger than `MAX_BYTES` in a .gz."""
    try:
        if path.suffix != ".gz":
            return path.read_bytes()
        with gzip.open(path) as file:
            data = file.read(MAX_BYTES + 1)
        check_bytes(len(data), path)
        return data
    except FileNotFoundError:
        raise UserError(f"no text file '{path}'") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot read {path}: {error}") from error


def check_bytes(size: int, path: Path) -> None:
    """Raises UserError if a compressed file is too large."""
    if size > MAX_BYTES:
        raise UserError(f"{path} has more than {MAX_BYTES:,} bytes when decompressed: if that is right, decompress it")


def lines(data: bytes, place: str) -> list[str]:
    """Splits UTF-8 only at line feeds: `str.splitlines` also splits at characters that occur within sentences."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{place} is not UTF-8 text: line {line} holds byte 0x{data[error.start]:02x}") from None
    if not text.strip():
        raise UserError(f"{place} is empty")
    return text.removesuffix("\n").split("\n")


def read_lines(path: Path) -> list[str]:
    """Reads the lines of a text file, gzipped or not."""
    return lines(read(path), str(path))
