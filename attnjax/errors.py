"""The exceptions that the user is to see: shown as a single line, with an exit code."""

import difflib
from collections.abc import Collection, Iterable


class UserError(Exception):
    """Says in one line what is wrong and what would be right. `exit_code` is the program's."""

    exit_code = 2


class WriteError(UserError):
    """A folder that cannot be written to."""


class Diverged(UserError):
    """A training whose loss or gradient is no number any more: nothing was wrong with what the user typed."""

    exit_code = 1


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns `did you mean 'x'? Known: x, y, z` for an unknown `name`."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"{hint}Known: {', '.join(known)}"


def check_choice(what: str, value: str, known: Collection[str]) -> None:
    """Raises UserError where `value` is not one of the `known` names."""
    if value not in known:
        raise UserError(f"unknown {what} '{value}': {nearest(str(value), known)}")
