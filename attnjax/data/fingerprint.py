"""Short digests that identify data, cheap enough to compute whenever a training starts."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from attnjax.errors import UserError
from attnjax.files import reason

# Up to so many files and bytes all contents are read, which takes seconds; beyond, blocks of some of the files.
MAX_FILES, MAX_BYTES = 100_000, 2**30
SAMPLED_FILES, BLOCK = 10_000, 2**13


def digest(parts: Iterable[object]) -> str:
    """Returns 16 hexadecimal digits for a sequence of strings, numbers or bytes."""
    total = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else str(part).encode(errors="surrogateescape")  # of names on disk
        total.update(b"%d:" % len(data))
        total.update(data)
    return total.hexdigest()[:16]


def file_contents(paths: Sequence[Path]) -> list[object]:
    """Returns sizes and hashes that change with the contents of files; UserError if one cannot be read.

    Modification times do not count, so that a copy of the data is the same data. Beyond `MAX_FILES` or `MAX_BYTES`,
    only the first, middle and last `BLOCK` bytes of about `SAMPLED_FILES` evenly spaced files are read.
    """
    try:
        sampled = len(paths) > MAX_FILES
        chosen = paths[:: len(paths) // SAMPLED_FILES] if sampled else paths
        sizes = [path.stat().st_size for path in chosen]
        if not sampled and sum(sizes) <= MAX_BYTES:
            return [*sizes, *(hashlib.sha256(path.read_bytes()).digest() for path in chosen)]
        return [*sizes, *(_sample(path) for path in chosen[:: max(1, len(chosen) // SAMPLED_FILES)])]
    except OSError as error:
        raise UserError(f"cannot read {error.filename or paths[0].parent}: {reason(error)}") from error


def _sample(path: Path) -> bytes:
    size = path.stat().st_size
    with path.open("rb", buffering=0) as file:
        return b"".join(os.pread(file.fileno(), BLOCK, start) for start in (0, size // 2, max(0, size - BLOCK)))
