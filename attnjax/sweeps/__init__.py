"""Which trials a sweep has: lists of overrides, {dotted config field: value}, that a config's `sweep()` puts together.

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
    """Returns a trial for each value of a config field."""
    return [{field: choice} for choice in choices]


def seeds(count: int) -> list[Overrides]:
    """Returns a trial for each of the seeds 0 to count - 1."""
    return values("seed", range(count))


def product(*parts: Iterable[Overrides]) -> list[Overrides]:
    """Returns every combination of one trial of each part; of a field in several, the last part's value counts."""
    return [_merged(combination) for combination in itertools.product(*parts)]


def zip(*parts: Iterable[Overrides]) -> list[Overrides]:
    """Returns the first trials of all parts as one, the second ones, and so on; ValueError if some have more."""
    return [_merged(row) for row in builtins.zip(*parts, strict=True)]


def chain(*parts: Iterable[Overrides]) -> list[Overrides]:
    """Returns the trials of one part after those of the other."""
    return list(itertools.chain(*parts))


def _merged(overrides):
    return functools.reduce(operator.or_, overrides, {})
