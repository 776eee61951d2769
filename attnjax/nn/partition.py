"""Sharding rules: the mesh axes over which each kind of layer is sharded, by parameter path.

A rule is a regular expression for the end of a path and, per axis of the array, the mesh axis that shards it, or None.
"fsdp" distributes a parameter's storage; it is all-gathered for use (Rajbhandari et al. 2020, stage 3), in a block of a
Transformer layer by layer, in the forward pass and again in the backward pass. "tensor" distributes the computation:
each device has its own heads or hidden units (Shoeybi et al. 2019, section 3). Arrays that no rule matches, such as
biases and norms, are replicated.
"""

import contextlib
import contextvars
import re
from collections.abc import Callable, Iterator

import jax

Rules = tuple[tuple[str, tuple[str | None, ...]], ...]

# Transformers: heads and hidden units over "tensor", the model width over "fsdp".
ATTENTION: Rules = (
    (r"(query|key|value)/kernel", ("fsdp", "tensor", None)),  # width, heads, features per head
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

# Convolutional networks: input channels over "fsdp", output channels over "tensor".
CONVOLUTION: Rules = (
    (r"(conv\d*|stem|shortcut)/kernel", (None, None, "fsdp", "tensor")),
    (r"(fc|head)/kernel", ("fsdp", None)),
)

# Recurrent networks: only inputs are sharded, because a kernel's output axis has the gates side by side.
RECURRENT: Rules = (
    (r"(input|hidden)/kernel", ("fsdp", None)),
    (r"(query|key|score|bridge)/kernel", ("fsdp", None)),
    (r"embedding", ("fsdp", None)),
    (r"output/kernel", ("fsdp", "tensor")),
)

# Fully connected networks.
DENSE: Rules = ((r"(fc\d+|head)/kernel", ("fsdp", "tensor")),)

# Kernels that each layer all-gathers for itself, so that no more than a few are whole at a time; `Linear` does.
_BY_LAYER = re.compile(r"(^|/)(\w*attention\d*/(query|key|value|out)|mlp/fc\d)/kernel$")

Gather = Callable[[str, jax.Array], jax.Array]
_gather: contextvars.ContextVar[Gather | None] = contextvars.ContextVar("gather", default=None)


def gathered_by_layer(path: str) -> bool:
    """Whether the parameter of this path is all-gathered by its layer, and not before the forward pass."""
    return _BY_LAYER.search(path) is not None


@contextlib.contextmanager
def gathering(gather: Gather | None) -> Iterator[None]:
    """Within this context, layers all-gather their kernels by `gather(path, kernel)`; None: kernels are whole."""
    token = _gather.set(gather)
    try:
        yield
    finally:
        _gather.reset(token)


def gather_of(path: str) -> Callable[[jax.Array], jax.Array] | None:
    """Returns how the layer with the kernel of this path all-gathers it; None: the kernel is whole."""
    gather = _gather.get()
    return (lambda kernel: gather(path, kernel)) if gather and gathered_by_layer(path) else None
