"""The exceptions that the user is to see: shown as a single line, with an exit code."""

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType


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


def import_extra(module: str, extra: str) -> ModuleType:
    """Imports a module that only one of the package's extras installs; UserError naming the extra if it is missing."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        raise UserError(f"{module} is not installed: pip install 'attnjax[{extra}]'") from None
