"""Text forms of durations and of dotted config fields, for tables and file names."""

from collections.abc import Iterable


def clock(seconds: float) -> str:
    """Returns hours:minutes:seconds."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"


def short_names(paths: Iterable[str]) -> dict[str, str]:
    """Returns dotted field -> its last component, with as many of those before it as make it unique among `paths`."""
    paths = list(dict.fromkeys(paths))
    short = {}
    for path in paths:
        parts = path.split(".")
        ends = (".".join(parts[-n:]) for n in range(1, len(parts) + 1))
        short[path] = next(end for end in ends if sum(f".{other}".endswith(f".{end}") for other in paths) == 1)
    return short
