"""How much memory a computation may still take."""

from pathlib import Path

import jax

_CONTAINER = Path("/sys/fs/cgroup")


def free_bytes() -> int | None:
    """Returns the free memory of a device in bytes, on CPUs that of the machine or container; None if unknown."""
    if statistics := jax.local_devices()[0].memory_stats():
        return statistics["bytes_limit"] - statistics["bytes_in_use"]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return None
    try:
        limit, used = (int((_CONTAINER / name).read_text()) for name in ("memory.max", "memory.current"))
    except (OSError, ValueError):  # no container, or one without a limit
        return free
    return min(free, limit - used)
