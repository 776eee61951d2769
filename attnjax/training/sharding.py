"""Where the training state lies on a mesh of devices: rules by parameter path, a table a family of models.

The mesh has the axes "data", "fsdp" and "tensor". A batch is cut over the first two; a kernel over "fsdp", which keeps
a share of it on each device between its uses (Rajbhandari et al. 2020, stage 3), and over "tensor", where each device
computes with its own heads or hidden units (Shoeybi et al. 2019, section 3). Optimizer state and averaged weights lie
as their parameters do.
"""

import re
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from attnjax.models import MODELS
from attnjax.nn.partition import Rules

AXES = ("data", "fsdp", "tensor")
BATCH = P(("data", "fsdp"))  # rows

RULES: dict[str, Rules] = {name: model.rules or () for name, model in MODELS.items()}


def spec(path: str, shape: tuple[int, ...], rules: Rules, sizes: dict[str, int]) -> P:
    """Returns how an array is cut over a mesh of axes of these sizes, by the first rule for its path and rank."""
    for pattern, axes in rules:
        if len(axes) == len(shape) and re.search(rf"(^|/){pattern}$", path):
            return P(*(axis if axis and n % sizes[axis] == 0 else None for n, axis in zip(shape, axes, strict=True)))
    return P()


def shardings(tree: Any, model: str, mesh: Mesh, *, gathered: bool = False) -> Any:
    """Returns a NamedSharding for each leaf (array or shape) of a state, or part of one, of a model of this name.

    `gathered`: as a step computes with them, whole over "fsdp".
    """
    sizes = dict(mesh.shape)

    def place(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        axes = spec(name, leaf.shape, RULES[model], sizes)
        return NamedSharding(mesh, P(*(None if gathered and axis == "fsdp" else axis for axis in axes)))

    return jax.tree_util.tree_map_with_path(place, tree)
