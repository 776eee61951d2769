"""Frozen parts of a model: in evaluation mode while the rest trains."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax

from attnjax.errors import UserError
from attnjax.nn.dropout import Dropout


def check_frozen(model: nn.Module, names: Sequence[str]) -> None:
    """Raises UserError if parts of the model cannot be frozen: blocks that a scan computes as one."""
    if names and getattr(model, "scan", False):
        raise UserError(f"optimizer.freeze={tuple(names)} needs model.scan=False: scanned blocks train together")


@contextlib.contextmanager
def frozen_parts(names: Sequence[str]) -> Iterator[None]:
    """Within this context the parts of a model called `names`, directly below it, compute with train=False.

    Their dropout is off, and their batch statistics are used and not updated. So is dropout that belongs to no part, as
    on embeddings, as long as all parts called before it are frozen.
    """
    trains = False  # whether a part with parameters that is not frozen has been called

    def call(function, args, kwargs, context):
        nonlocal trains
        module, path = context.module, context.module.path
        if not path:
            return function(*args, **kwargs)
        frozen = path[0] in names or (len(path) == 1 and isinstance(module, Dropout) and not trains)
        trains = trains or (not frozen and bool(module.variables.get("params")))
        return function(*args, **(kwargs | {"train": False} if frozen and "train" in kwargs else kwargs))

    with nn.intercept_methods(call) if names else contextlib.nullcontext():
        yield


def without_gradients(params: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Returns the parameters, with those of the parts called `names` as constants of a gradient."""
    return {name: jax.lax.stop_gradient(part) if name in names else part for name, part in params.items()}
