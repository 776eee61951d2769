"""Exceptions meant for the user: shown as one line, with an exit code, instead of a traceback."""

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType


class UserError(Exception):
    """A user's mistake; the message says in one line what is wrong and what would be right."""

    exit_code = 2


class WriteError(UserError):
    """A folder that cannot be written to."""


class Diverged(UserError):
    """Losses, gradients or probabilities are NaN or infinite; nothing the user typed was wrong."""

    exit_code = 1


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns `did you mean 'x'? Known: x, y, z` for an unknown `name`."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"{hint}Known: {', '.join(known)}"


def check_choice(what: str, value: str, known: Iterable[str]) -> None:
    """Raises UserError if `value` is not one of the known names of a `what`."""
    known = list(known)
    if value not in known:
        raise UserError(f"unknown {what} '{value}', {nearest(str(value), known)}")


def import_extra(module: str, extra: str) -> ModuleType:
    """Imports a module that only one of the package's extras installs; UserError naming the extra if it is missing."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        raise UserError(f"{module} is not installed: pip install 'attnjax[{extra}]'") from None
