"""Files on disk, gzipped or not."""

import gzip
import zlib
from pathlib import Path

from attnjax.errors import UserError


def find(path: Path) -> Path | None:
    """Returns the path of this file, or of the same file with .gz appended, or None if there is neither."""
    return next((file for file in (path, path.with_name(f"{path.name}.gz")) if file.is_file()), None)


def read(path: Path) -> bytes:
    """Reads a file, decompressing .gz; UserError if it is missing or damaged."""
    try:
        return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"no text file '{path}'") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot read {path}: {error}") from error


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
