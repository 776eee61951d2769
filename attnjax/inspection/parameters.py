"""Parameter counts."""

import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import jax


def count(params: Any) -> int:
    """Returns the number of parameters in a pytree of arrays or ShapeDtypeStructs."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def count_by_part(params: Mapping[str, Any]) -> dict[str, int]:
    """Returns the number of parameters per top-level module; block0, block1, ... are summed as "block*"."""
    parts: Counter[str] = Counter()
    for name, part in params.items():
        parts[re.sub(r"\d+", "*", name)] += count(part)
    return dict(parts)
