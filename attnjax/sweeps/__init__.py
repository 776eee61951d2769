"""Building blocks for a config's `sweep()`: lists of trials, each a dict of overrides {dotted config field: value}.

def sweep():
    return sweeps.product(sweeps.values("model.depth", [2, 4]), sweeps.seeds(3))  # six trials
"""

import builtins
import functools
import itertools
import operator
from collections.abc import Iterable
from typing import Any

Overrides = dict[str, Any]


def values(field: str, choices: Iterable[Any]) -> list[Overrides]:
    """Returns one trial per value of a config field."""
    return [{field: choice} for choice in choices]


def seeds(count: int) -> list[Overrides]:
    """Returns one trial per seed, 0 to count - 1."""
    return values("seed", range(count))


def product(*parts: Iterable[Overrides]) -> list[Overrides]:
    """Returns the Cartesian product of the parts; a field set by several parts takes the last part's value."""
    return [_merged(combination) for combination in itertools.product(*parts)]


def zip(*parts: Iterable[Overrides]) -> list[Overrides]:
    """Merges the first trials of all parts, the second ones, and so on; ValueError if the lengths differ."""
    return [_merged(row) for row in builtins.zip(*parts, strict=True)]


def chain(*parts: Iterable[Overrides]) -> list[Overrides]:
    """Returns the parts' trials one part after the other."""
    return list(itertools.chain(*parts))


def _merged(overrides):
    return functools.reduce(operator.or_, overrides, {})
