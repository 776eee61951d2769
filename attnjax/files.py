"""Writing so that a stop at any moment leaves the old file or the new one, and a full disk is one clear line."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from attnjax.errors import WriteError

# What a library may tell in words alone, where the system gave it a number.
_REASONS = [os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EACCES)]


def write_atomically(path: Path, data: str | bytes) -> None:
    """Writes a whole file, or, if it is stopped, nothing: the next call cleans up what that may leave."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(data.encode() if isinstance(data, str) else data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turns an OSError of the block into a WriteError that names the folder and the reason."""
    try:
        yield
    except OSError as error:
        raise WriteError(f"cannot write to '{folder}': {reason(error)}") from error


def reason(error: BaseException) -> str:
    """Returns in a few words why something could not be written; looks into what caused the error."""
    text, seen, current = str(error), [], error
    if text.startswith("NOT_FOUND"):
        return os.strerror(errno.ENOENT)
    while current is not None and current not in seen:
        if isinstance(current, OSError) and current.errno:
            return os.strerror(current.errno)
        seen.append(current)
        current = current.__cause__ or current.__context__
    return next((known for known in _REASONS if known in text), text.splitlines()[0] if text else type(error).__name__)
