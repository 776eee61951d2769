"""Where the arrays of a training state are stored on a mesh of devices, by rules on parameter paths.

The mesh has the axes "data", "fsdp" and "tensor". A batch is sharded over the first two. A kernel is sharded over
"fsdp", which keeps a shard of it on each device between its uses (ZeRO stage 3, Rajbhandari et al. 2020), and over
"tensor", where each device computes with its own heads or hidden units (Shoeybi et al. 2019, section 3). Optimizer
state and averaged weights are sharded like their parameters.
"""

import re
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from attnjax.nn.partition import Rules

AXES = ("data", "fsdp", "tensor")
ROWS = P(("data", "fsdp"))


def spec(path: str, shape: tuple[int, ...], rules: Rules | None, sizes: dict[str, int]) -> P:
    """Returns how an array is partitioned over mesh axes of these sizes, by the first rule for its path and rank.

    What no rule names, such as biases and norms, is replicated, and so is an axis that the devices do not divide
    evenly. Without rules, an array of two axes or more is sharded over "fsdp" along the largest axis that divides.
    """
    if rules is None:
        even = [axis for axis, n in enumerate(shape) if n % sizes["fsdp"] == 0]
        if len(shape) < 2 or not even:
            return P()
        largest = max(even, key=lambda axis: shape[axis])
        return P(*("fsdp" if axis == largest else None for axis in range(len(shape))))
    for pattern, axes in rules:
        if len(axes) == len(shape) and re.search(rf"(^|/){pattern}$", path):
            return P(*(axis if axis and n % sizes[axis] == 0 else None for n, axis in zip(shape, axes, strict=True)))
    return P()


def parameter_sharding(
    path: str, shape: tuple[int, ...], rules: Rules | None, mesh: Mesh, *, gathered: bool = False
) -> NamedSharding:
    """Returns the sharding of the array at `path`; `gathered`: as the loss computes with it, whole over "fsdp"."""
    axes = spec(path, shape, rules, dict(mesh.shape))
    return NamedSharding(mesh, P(*(None if gathered and axis == "fsdp" else axis for axis in axes)))


def shardings(tree: Any, rules: Rules | None, mesh: Mesh) -> Any:
    """Returns a NamedSharding for each array or shape of a state, or of a part of one."""

    def place(path, leaf):
        return parameter_sharding(jax.tree_util.keystr(path, simple=True, separator="/"), leaf.shape, rules, mesh)

    return jax.tree_util.tree_map_with_path(place, tree)
