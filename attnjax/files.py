"""Files in a run folder: atomic writes, checksums of JSON, and write errors (a full or read-only disk) as one line."""

import contextlib
import errno
import fcntl
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from attnjax.errors import UserError, WriteError

# Reasons that a library may report as text, without the errno.
_REASONS = [os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EACCES)]
_CHECKSUM = "crc32"


def write_atomically(path: Path, data: str | bytes) -> None:
    """Writes a file atomically: if interrupted, the old one is intact; the next call overwrites the temporary file.

    Several processes may write the same file at once; each waits for its turn.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with _locked(temporary) as file:
        file.truncate(0)
        file.write(data.encode() if isinstance(data, str) else data)
        file.flush()
        os.fsync(file.fileno())
        os.replace(temporary, path)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[BinaryIO]:
    """Opens a temporary file that no other process writes to."""
    while True:
        with path.open("ab") as file:
            with contextlib.suppress(OSError):  # some network file systems have no locks
                fcntl.flock(file, fcntl.LOCK_EX)
            # While this process waited, the one before it may have given the file its final name.
            if _is_open_as(file, path):
                yield file
                return


def _is_open_as(file, path):
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def with_checksum(data: dict[str, Any], file: str) -> dict[str, Any]:
    """Returns a JSON object with a last key: the checksum of its text and of the name of the file it is written to."""
    return data | {_CHECKSUM: _checksum(data, file)}


def parse_checked(text: str | bytes, file: str) -> dict[str, Any]:
    """Returns the JSON object that `with_checksum` was given.

    ValueError if the text is not one, was changed, or belongs to another file.
    """
    data = json.loads(text)
    if not isinstance(data, dict):
        raise ValueError("it is not a JSON object")
    written = data.pop(_CHECKSUM, None)
    if written is not None and written != _checksum(data, file):
        raise ValueError("its checksum differs")
    return data


def _checksum(data, file):
    return f"{zlib.crc32(json.dumps([file, data]).encode()):08x}"


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Writes a JSON object with a checksum, atomically."""
    write_atomically(path, json.dumps(with_checksum(data, path.name), indent=2) + "\n")


def check_name(folder: Path) -> None:
    """Raises UserError for a file, and for a name that is not UTF-8: the libraries that write checkpoints need it."""
    if folder.is_file():
        raise UserError(f"the run folder '{folder}' is a file: choose another name")
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        raise UserError(f"the name of the run folder, {str(folder)!a}, is not UTF-8: choose another") from None


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turns an OSError raised in the block into a WriteError that names the folder, the reason and the file."""
    try:
        yield
    except OSError as error:
        file = error.filename2 or error.filename
        name = f" ({Path(file).name})" if file and Path(file) != folder else ""
        raise WriteError(f"cannot write to '{folder}': {reason(error)}{name}") from error


def reason(error: BaseException) -> str:
    """Returns in a few words why a write failed, from the error and its chain of causes."""
    text, seen = str(error), []
    current: BaseException | None = error
    if text.startswith("NOT_FOUND"):
        return os.strerror(errno.ENOENT)
    while current is not None and current not in seen:
        if isinstance(current, OSError) and current.errno:
            return os.strerror(current.errno)
        seen.append(current)
        current = current.__cause__ or current.__context__
    return next((known for known in _REASONS if known in text), text.splitlines()[0] if text else type(error).__name__)
