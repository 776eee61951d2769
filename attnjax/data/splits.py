"""TFDS's split syntax for every kind of source: `train`, `train[:90%]`, `train[100:200]`, `train[-10%:]`."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from attnjax.errors import UserError, nearest

_SPLIT = re.compile(r"(?P<name>\w[\w.-]*)(\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\])?")


@dataclass(frozen=True)
class Split:
    """A named split, or a slice of it: `written` in full, and its parts."""

    written: str
    name: str
    start: str
    stop: str

    @classmethod
    def parse(cls, split: str) -> "Split":
        """Parses a split; UserError if it is malformed."""
        match = _SPLIT.fullmatch(split)
        if not match:
            raise UserError(f"'{split}' is not a split: write train, train[:90%], train[90%:] or train[100:200]")
        return cls(split, match["name"], match["start"] or "0", match["stop"] or "100%")

    def bounds(self, length: int) -> tuple[int, int]:
        """Returns the slice's bounds in `length` examples; UserError if it exceeds them or is empty."""
        start, stop = self._index(self.start, length), self._index(self.stop, length)
        check_not_empty(start, stop, length)
        return start, stop

    def _index(self, bound: str, length: int) -> int:
        """Converts a bound to an index; a percentage is rounded to the nearest example."""
        if bound.endswith("%"):
            percent = int(bound[:-1])
            # -10% is treated as 90%, so that both round to the same index.
            index = round((percent + 100 if bound[0] == "-" else percent) * length / 100)
        else:
            index = int(bound) + (length if bound[0] == "-" else 0)
        if not 0 <= index <= length:
            raise UserError(f"split '{self.written}' goes beyond the {length} examples")
        return index


def check_not_empty(start: int, stop: int, length: int) -> None:
    """Raises UserError if a slice of `length` examples is empty."""
    if start >= stop:
        raise UserError(f"the split is empty: it runs from {start} to {stop} of {length} examples")


def check_split(split: str, known: Iterable[str], place: str) -> None:
    """Raises UserError if `place` has no split of this name."""
    known = tuple(known)
    if split not in known:
        raise UserError(f"{place} has no split '{split}': {nearest(split, known)}")
