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
        if not train:
            return ((x - mean) * (jax.lax.rsqrt(var + _EPSILON) * scale) + bias).astype(self.dtype)
        rows = _rows.get()
        rows = None if rows is None else rows.reshape(-1, *(1,) * (x.ndim - 1))
        y, mean, var, share = _batch_norm(x, rows, jax.lax.stop_gradient(mean), scale, bias, self.dtype)
        for statistic, new in zip(running, (mean, var), strict=True):
            moved = _MOMENTUM * statistic.value + (1 - _MOMENTUM) * jax.lax.stop_gradient(new)
            statistic.value = moved if rows is None else jnp.where(share > 0, moved, statistic.value)
        return y


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def _batch_norm(x, rows, near, scale, bias, dtype):
    """Returns x normalised, the mean and variance (C,) of the rows that count, and their share of the global batch.

    Mean and variance are of one pass over x: sums of x - near and of its square, which do not cancel where `near`, the
    running mean, is near the mean. rows: (B, 1, ..., 1) bool, True for a row that counts, or None: all count.
    """
    return _batch_norm_forward(x, rows, near, scale, bias, dtype)[0]


def _batch_norm_forward(x, rows, near, scale, bias, dtype):
    shifted = _wide(x) - near
    if rows is None:
        share = jnp.ones(())
        mean, square = _means(shifted, jnp.square(shifted))
    else:
        shifted = jnp.where(rows, shifted, 0)
        share, *means = _means(rows.astype(shifted.dtype), shifted, jnp.square(shifted))
        mean, square = (x / jnp.maximum(share, 1e-9) for x in means)
    var = jnp.maximum(square - jnp.square(mean), 0)
    mean = mean + near
    inverse = jax.lax.rsqrt(var + _EPSILON)
    y = (_wide(x) - mean) * (inverse * scale) + bias
    return (y.astype(dtype), mean, var, share), (x, rows, mean, inverse, scale, share)


def _batch_norm_backward(dtype, saved, gradients):
    x, rows, mean, inverse, scale, share = saved
    gradient, axes = _wide(gradients[0]), tuple(range(x.ndim - 1))
    normalised = _wide(x) * inverse - mean * inverse
    along, across = _means(gradient, gradient * normalised)
    by_statistics = along + normalised * across
    if rows is not None:
        by_statistics = jnp.where(rows, by_statistics / jnp.maximum(share, 1e-9), 0)
    x_gradient = (inverse * scale) * (gradient - by_statistics)
    return x_gradient.astype(x.dtype), None, None, (gradient * normalised).sum(axes), gradient.sum(axes)


_batch_norm.defvjp(_batch_norm_forward, _batch_norm_backward)


def _means(*arrays: jax.Array) -> list[jax.Array]:
    """Returns the means (C,) of arrays (B, ..., C) over the global batch."""
    means, axis = [x.mean(tuple(range(x.ndim - 1))) for x in arrays], batch_axis()
    return means if axis is None else jax.lax.pmean(means, axis)
