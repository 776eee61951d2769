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

AXES = ("data", "fsdp", "tensor")
BATCH = P(("data", "fsdp"))  # rows

# (end of a path, what each axis is cut over). What no row names, biases and norms, is whole on every device, and so is
# an axis that the devices do not divide evenly.
Rules = tuple[tuple[str, tuple[str | None, ...]], ...]

ATTENTION: Rules = (
    (r"(query|key|value)/kernel", ("fsdp", "tensor", None)),  # width, heads, features of a head
    (r"(query|key|value)/bias", ("tensor", None)),
    (r"\w*attention\d*/out/kernel", ("tensor", None, "fsdp")),
    (r"mlp/fc1/kernel", ("fsdp", "tensor")),
    (r"mlp/fc1/bias", ("tensor",)),
    (r"mlp/fc2/kernel", ("tensor", "fsdp")),
    (r"(source|target)_embedding/embedding", ("tensor", "fsdp")),  # vocabulary, width
    (r"relative_positions/embedding", (None, None, "tensor")),  # rows, columns, heads
    (r"positions/embedding", (None, None, "fsdp")),
    (r"positions/(rows|columns)", (None, "fsdp")),
    (r"projection/kernel", (None, None, None, "fsdp")),  # of patches
    (r"(reduction|linear|head\d*|pre_logits|adapter|output)/kernel", ("fsdp", None)),
)
CONVOLUTION: Rules = (
    (r"(conv\d*|stem|shortcut)/kernel", (None, None, "fsdp", "tensor")),
    (r"(fc|head)/kernel", ("fsdp", None)),
)
RECURRENT: Rules = (
    (r"(input|hidden)/kernel", ("fsdp", None)),  # the gates stand side by side: cutting them would part each
    (r"(query|key|score|bridge)/kernel", ("fsdp", None)),
    (r"embedding", ("fsdp", None)),
    (r"output/kernel", ("fsdp", "tensor")),
)
DENSE: Rules = ((r"(fc\d+|head)/kernel", ("fsdp", "tensor")),)

# A captioner has the rules of both its parts, whose paths do not meet.
RULES: dict[str, Rules] = {
    "mlp": DENSE,
    "lenet": CONVOLUTION,
    "resnet": CONVOLUTION,
    "vit": ATTENTION,
    "swin": ATTENTION,
    "crossvit": ATTENTION,
    "rnn": RECURRENT,
    "transformer": ATTENTION,
    "captioner": ATTENTION + CONVOLUTION,
}


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
