"""Random masks that do not depend on how many devices share the batch."""

import jax
import jax.numpy as jnp
import numpy as np

BATCH_AXIS = "data"


def batch_axis() -> str | None:
    """Returns "data" where the batch is sharded over a manual axis of this name, as in `jax.shard_map`, else None.

    Under plain jit the result is None: arrays there have the global batch, and the compiler inserts the collectives.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return BATCH_AXIS if BATCH_AXIS in mesh.manual_axes and mesh.shape[BATCH_AXIS] > 1 else None


def bernoulli(key: jax.Array, p: float | jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Returns a boolean array of `shape`, (B, ...), True with probability p, in steps of 2**-24.

    Where the batch is sharded, these are this device's rows of the array for the global batch, so that with one key on
    all devices the draws are those of a single device.

    Element i of row r is a hash of i, r and the key: each is computed where it is used. JAX's generators took up to a
    fifth of a training step on a GPU for the masks of dropout.
    """
    rows = jnp.arange(shape[0], dtype=jnp.uint32)
    if (axis := batch_axis()) is not None:
        rows += jax.lax.axis_index(axis).astype(jnp.uint32) * shape[0]
    rows = rows.reshape(-1, *(1,) * (len(shape) - 1))
    first, second = (_hash(_hash(rows) ^ seed) for seed in jax.random.bits(key, (2,), jnp.uint32))
    index = jnp.zeros((), jnp.uint32)
    for dimension, size in enumerate(shape[1:], 1):
        index = index * size + jax.lax.broadcasted_iota(jnp.uint32, (1, *shape[1:]), dimension)
    bits = _hash(second ^ _mix((index + first) * np.uint32(0x9E3779B9), 16))
    return (bits >> 8).astype(jnp.float32) * 2**-24 < p


def _mix(x, shift):
    return x ^ (x >> shift)


def _hash(x):
    """Returns the hash "lowbias32" of Wellons (2018) of uint32 numbers, in which each bit depends on all."""
    x = _mix(x, 16) * np.uint32(0x7FEB352D)
    return _mix(_mix(x, 15) * np.uint32(0x846CA68B), 16)
