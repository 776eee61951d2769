"""Normalization layers, with the variants that the models' references use."""

import contextlib
import contextvars
from collections.abc import Iterator

import flax.linen as nn
import jax
import jax.numpy as jnp

from attnjax.nn.data_parallel import batch_axis

_MOMENTUM, _EPSILON = 0.9, 1e-5  # as in He et al.'s and torchvision's models

_rows: contextvars.ContextVar[jax.Array | None] = contextvars.ContextVar("rows", default=None)


def layer_norm(epsilon: float, dtype: str, name: str | None) -> nn.LayerNorm:
    """Returns a LayerNorm with the two-pass variance, which does not cancel when the mean is large."""
    return nn.LayerNorm(epsilon=epsilon, use_fast_variance=False, dtype=dtype, name=name)


@contextlib.contextmanager
def counting_rows(rows: jax.Array | None) -> Iterator[None]:
    """Within this context batch statistics count the rows of a batch where `rows`, bool (B,), is True; None: all rows.

    A context, as most layers treat rows separately, and models need not know of padding to pass it to those that mix
    them.
    """
    token = _rows.set(rows)
    try:
        yield
    finally:
        _rows.reset(token)


class BatchNorm(nn.Module):
    """Batch norm (Ioffe & Szegedy 2015) of x (B, ..., C), with the statistics of the global batch on any devices.

    In training, rows that do not count (`counting_rows`) are normalised but not part of the statistics; without any row
    that counts, the running statistics stay as they are. Parameters and the collection "batch_stats" are flax's.
    """

    dtype: str = "float32"

    @nn.compact
    def __call__(self, x, *, train: bool):
        features = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, features, "float32")
        bias = self.param("bias", nn.initializers.zeros, features, "float32")
        running = [
            self.variable("batch_stats", name, init, features, "float32")
            for name, init in (("mean", jnp.zeros), ("var", jnp.ones))
        ]
        mean, var = (statistic.value for statistic in running)
        if train:
            mean, var, moves = _statistics(x.astype(jnp.promote_types(x.dtype, jnp.float32)), _rows.get())
            for statistic, new in zip(running, (mean, var), strict=True):
                moved = _MOMENTUM * statistic.value + (1 - _MOMENTUM) * new
                statistic.value = moved if moves is None else jnp.where(moves, moved, statistic.value)
        mean, var, scale, bias = (c.reshape(*(1,) * (x.ndim - 1), -1) for c in (mean, var, scale, bias))
        y = (x - mean) * (jax.lax.rsqrt(var + _EPSILON) * scale) + bias
        return y.astype(self.dtype)


def _statistics(x, rows):
    """Returns mean and variance (C,) over the rows of the global batch that count, and whether any does.

    `rows` None: all count, without a computation that says so.
    """
    if rows is None:
        mean = _mean(x)
        return mean, _mean(jnp.square(x - jnp.expand_dims(mean, tuple(range(x.ndim - 1))))), None
    # Zeros for the other rows, and the mean over all rows times all / counting rows: with equal shares of the rows, the
    # devices need not exchange how many of theirs count.
    counts = rows.reshape(-1, *(1,) * (x.ndim - 1))
    share = _mean(counts.astype(x.dtype).reshape(-1, 1))
    factor = 1 / jnp.maximum(share, 1e-9)
    mean = _mean(jnp.where(counts, x, 0)) * factor
    return mean, _mean(jnp.where(counts, jnp.square(x - mean), 0)) * factor, share > 0


def _mean(x):
    """Returns the mean (C,) of x (B, ..., C) over the global batch."""
    mean, axis = x.mean(tuple(range(x.ndim - 1))), batch_axis()
    return mean if axis is None else jax.lax.pmean(mean, axis)
