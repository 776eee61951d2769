"""Random masks that do not depend on how many devices share the batch."""

import jax

BATCH_AXIS = "data"


def batch_axis() -> str | None:
    """Returns "data" where the batch is sharded over a manual axis of this name, as in `jax.shard_map`, else None.

    Under plain jit the result is None: arrays there have the global batch, and the compiler inserts the collectives.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return BATCH_AXIS if BATCH_AXIS in mesh.manual_axes and mesh.shape[BATCH_AXIS] > 1 else None


def bernoulli(key: jax.Array, p: float | jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Returns a boolean array of `shape`, (B, ...), True with probability p.

    Where the batch is sharded, these are this device's rows of the array for the global batch, so that with one key on
    all devices the draws are those of a single device.
    """
    axis = batch_axis()
    if axis is None:
        return jax.random.bernoulli(key, p, shape)
    rows = shape[0]
    whole = jax.random.bernoulli(key, p, (rows * jax.lax.axis_size(axis), *shape[1:]))
    return jax.lax.dynamic_slice_in_dim(whole, jax.lax.axis_index(axis) * rows, rows)
