"""Random numbers for the rows of a batch that do not depend on how many devices share it."""

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
    """
    rows = jnp.arange(shape[0], dtype=jnp.uint32)
    if (axis := batch_axis()) is not None:
        rows += jax.lax.axis_index(axis).astype(jnp.uint32) * shape[0]
    seeds = _hash(_hash(rows)[:, None] ^ jax.random.bits(key, (2,), jnp.uint32))
    return _uniform(seeds, shape[1:]) < p


def normal(seeds: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Returns float32 (B, *shape) from the standard normal distribution, each row from its seed, (B, 2) uint32."""
    # The middle of each of the 2**24 intervals, as 0 and 1 would be infinite.
    return np.float32(np.sqrt(2)) * jax.lax.erf_inv(2 * _uniform(_hash(seeds), shape) - np.float32(1 - 2**-24))


def _uniform(seeds, shape):
    """Returns float32 (B, *shape) from 0 to 1 - 2**-24: element i of a row is a hash of i and the row's two seeds.

    Each is computed where it is used. JAX's generators took up to a fifth of a training step on a GPU for the masks of
    dropout.
    """
    first, second = (seeds[:, i].reshape(-1, *(1,) * len(shape)) for i in range(2))
    index = jnp.zeros((), jnp.uint32)
    for dimension, size in enumerate(shape, 1):
        index = index * size + jax.lax.broadcasted_iota(jnp.uint32, (1, *shape), dimension)
    bits = _hash(second ^ _mix((index + first) * np.uint32(0x9E3779B9), 16))
    return (bits >> 8).astype(jnp.float32) * 2**-24


def _mix(x, shift):
    return x ^ (x >> shift)


def _hash(x):
    """Returns the hash "lowbias32" of Wellons (2018) of uint32 numbers, in which each bit depends on all."""
    x = _mix(x, 16) * np.uint32(0x7FEB352D)
    return _mix(_mix(x, 15) * np.uint32(0x846CA68B), 16)
