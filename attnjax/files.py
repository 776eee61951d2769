"""Atomic file writes, and write errors (a full or read-only disk) as one line."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from attnjax.errors import WriteError

# Reasons that a library may report as text, without the errno.
_REASONS = [os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EACCES)]


def write_atomically(path: Path, data: str | bytes) -> None:
    """Writes a file atomically: if interrupted, the old one is intact; the next call overwrites the temporary file."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(data.encode() if isinstance(data, str) else data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turns an OSError raised in the block into a WriteError that names the folder and the reason."""
    try:
        yield
    except OSError as error:
        raise WriteError(f"cannot write to '{folder}': {reason(error)}") from error


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
