"""The one exception for mistakes a user can fix: shown as a single line, exit code 2."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Says in one line what is wrong and what would be right."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns `did you mean 'x'? Known: x, y, z` for an unknown `name`."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"{hint}Known: {', '.join(known)}"
