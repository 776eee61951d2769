"""Text forms of durations and of dotted config fields, for tables and file names."""

import hashlib
import re
from collections.abc import Iterable

MAX_FILE_NAME = 120  # bytes: file systems allow 255, suffixes included


def file_name(text: str) -> str:
    """Returns `text` if it can be a file's name, else its plain characters and a digest that tells it from others."""
    plain = re.sub(r"[^\w.+,=-]+", "-", text, flags=re.ASCII).strip("-")
    if text and plain == text and len(text) <= MAX_FILE_NAME:
        return text
    return f"{plain[: MAX_FILE_NAME - 9]}-{hashlib.sha256(text.encode(errors='surrogatepass')).hexdigest()[:8]}"


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
