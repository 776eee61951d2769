"""Normalization layers, with the variants that the models' references use."""

import contextlib
import contextvars
from collections.abc import Iterator
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from attnjax.nn.data_parallel import batch_axis

_MOMENTUM, _EPSILON = 0.9, 1e-5  # as in He et al.'s and torchvision's models

_rows: contextvars.ContextVar[jax.Array | None] = contextvars.ContextVar("rows", default=None)


class LayerNorm(nn.Module):
    """Layer norm (Ba et al. 2016) of x (..., D) over D, computed in float32, with parameters named as flax's.

    The variance is of two passes, which does not cancel when the mean is large. The backward pass reads x and the mean
    and standard deviation of each row. Automatic differentiation also saves the normalised x in float32.
    """

    epsilon: float
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:], "float32")
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:], "float32")
        return _layer_norm(x, scale, bias, self.epsilon, self.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _layer_norm(x, scale, bias, epsilon, dtype):
    return _layer_norm_forward(x, scale, bias, epsilon, dtype)[0]


def _layer_norm_forward(x, scale, bias, epsilon, dtype):
    wide = _wide(x)
    mean = wide.mean(-1, keepdims=True)
    centred = wide - mean
    inverse = jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + epsilon)
    return (centred * (inverse * scale) + bias).astype(dtype), (x, scale, mean, inverse)


def _layer_norm_backward(epsilon, dtype, saved, gradient):
    x, scale, mean, inverse = saved
    gradient, rows = _wide(gradient), tuple(range(x.ndim - 1))
    # Not (x - mean) * inverse: the compiler would find that in the forward pass, and save it.
    normalised = _wide(x) * inverse - mean * inverse
    scaled = gradient * scale
    along, across = scaled.mean(-1, keepdims=True), (scaled * normalised).mean(-1, keepdims=True)
    x_gradient = inverse * (scaled - along - normalised * across)
    return x_gradient.astype(x.dtype), (gradient * normalised).sum(rows), gradient.sum(rows)


_layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


def _wide(x):
    """Returns x in at least float32."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


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
            mean, var, moves = _statistics(_wide(x), _rows.get())
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
