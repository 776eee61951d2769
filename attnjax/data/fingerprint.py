"""Short digests that identify data, cheap enough to compute whenever a training starts."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

MAX_FILES = 10_000  # beyond, only every n-th file's size is read


def digest(parts: Iterable[object]) -> str:
    """Returns 16 hexadecimal digits for a sequence of strings, numbers or bytes."""
    total = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else str(part).encode()
        total.update(b"%d:" % len(data))
        total.update(data)
    return total.hexdigest()[:16]


def file_sizes(paths: Iterable[Path]) -> list[int]:
    """Returns the sizes in bytes of all files, or of about 10,000 evenly spaced ones if there are more."""
    paths = list(paths)
    return [path.stat().st_size for path in paths[:: max(1, len(paths) // MAX_FILES)]]
