"""Dropout and stochastic depth, with the same masks on any number of devices."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from attnjax.nn.data_parallel import bernoulli


class Dropout(nn.Module):
    """Dropout (Srivastava et al. 2014) of x (B, ...), as `flax.linen.Dropout`; active dropout needs the rng "dropout".

    Axes in `broadcast_dims` share one mask. The first axis has the batch, or several rows per example in its order.
    """

    rate: float
    broadcast_dims: Sequence[int] = ()

    @nn.compact
    def __call__(self, x, *, train: bool):
        if not train or self.rate == 0:
            return x
        if self.rate == 1:
            return jnp.zeros_like(x)  # x / 0 would give NaN gradients
        shape = tuple(1 if axis in self.broadcast_dims else length for axis, length in enumerate(x.shape))
        keep = jnp.broadcast_to(bernoulli(self.make_rng("dropout"), 1 - self.rate, shape), x.shape)
        return jax.lax.select(keep, x / (1 - self.rate), jnp.zeros_like(x))


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016): drops a residual branch per example, scaling kept ones by 1/(1 - rate)."""

    rate: float | jax.Array  # an array () under a scan over blocks

    @nn.compact
    def __call__(self, y, *, train: bool):
        if not isinstance(self.rate, jax.Array):
            return Dropout(self.rate, broadcast_dims=tuple(range(1, y.ndim)))(y, train=train)
        if not train:
            return y
        kept = 1 - self.rate
        keep = bernoulli(self.make_rng("dropout"), kept, (y.shape[0],) + (1,) * (y.ndim - 1))
        return jnp.where(keep, y / kept.astype(y.dtype), 0)
