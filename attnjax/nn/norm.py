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
def counting_rows(rows: jax.Array) -> Iterator[None]:
    """Within this context batch statistics count the rows of a batch where `rows`, bool (B,), is True, and no others.

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
            counts, factor = _counting(x)
            means = _mean_over(x.astype(jnp.float32), counts)
            mean = means * factor
            squares = _mean_over(jnp.square(x.astype(jnp.float32) - mean), counts)
            var = squares * factor
            for statistic, new in zip(running, (means, squares), strict=True):
                # In this order the factor of 1 changes no bit of what the compiler makes of the other two.
                moved = _MOMENTUM * statistic.value + (1 - _MOMENTUM) * new * factor
                statistic.value = jnp.where(factor > 0, moved, statistic.value)
        y = (x - mean) * (jax.lax.rsqrt(var + _EPSILON) * scale) + bias
        return y.astype(self.dtype)


def _counting(x):
    """Returns which entries of x count, (B, 1, ..., 1), and all rows of the global batch divided by those that count.

    The mean over all rows, with zeros for those that do not count, times this factor is the mean over those that do. It
    is exactly 1 where all count, and 0 where none does.
    """
    rows, axis = _rows.get(), batch_axis()
    if rows is None:
        return True, 1.0
    share = rows.astype(jnp.float32).mean()
    share = share if axis is None else jax.lax.pmean(share, axis)
    return rows.reshape(-1, *(1,) * (x.ndim - 1)), jnp.where(share > 0, 1 / jnp.maximum(share, 1e-9), 0)


def _mean_over(x, counts):
    """Returns the mean (C,) over all rows of the global batch, with zeros where `counts` is False."""
    axis = batch_axis()
    mean = jnp.where(counts, x, 0).mean(tuple(range(x.ndim - 1)))
    return mean if axis is None else jax.lax.pmean(mean, axis)
