"""Parameter counts."""

import math
import re

import jax


def count(params) -> int:
    """Returns the number of parameters of a tree of arrays or shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def count_by_part(params) -> dict[str, int]:
    """Returns the parameters of each top-level part; parts that differ in a number only are one, like "block*"."""
    parts = {}
    for name, part in params.items():
        name = re.sub(r"\d+", "*", name)
        parts[name] = parts.get(name, 0) + count(part)
    return parts
