"""TFDS's split syntax for every kind of source: `train`, `train[:90%]`, `train[100:200]`, `train[-10%:]`."""

import re
from collections.abc import Iterable

from attnjax.errors import UserError, nearest

_SPLIT = re.compile(r"(?P<name>\w[\w.-]*)(\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\])?")


def parse_split(split: str) -> tuple[str, str | None, str | None]:
    """Returns the name of a split and the two ends of its slice, None where there is none."""
    match = _SPLIT.fullmatch(split)
    if not match:
        raise UserError(f"'{split}' is not a split: write train, train[:90%], train[90%:] or train[100:200]")
    return match["name"], match["start"], match["stop"]


def position(bound: str | None, length: int, default: int, split: str) -> int:
    """Turns one end of a slice into an index; a percentage is rounded to the nearest example."""
    if bound is None:
        return default
    if bound.endswith("%"):
        percent = int(bound[:-1])
        # -10% is made 90%, so that both round to the same place.
        index = round((percent + 100 if bound[0] == "-" else percent) * length / 100)
    else:
        index = int(bound) + (length if bound[0] == "-" else 0)
    if not 0 <= index <= length:
        raise UserError(f"split '{split}' goes beyond the {length} examples there are")
    return index


def check_not_empty(start: int, stop: int, length: int) -> None:
    if start >= stop:
        raise UserError(f"the split is empty: it runs from {start} to {stop} of {length} examples")


def check_split(split: str, known: Iterable[str], place: str) -> None:
    known = tuple(known)
    if split not in known:
        raise UserError(f"{place} has no split '{split}': {nearest(split, known)}")
