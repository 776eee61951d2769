"""Batch norm: flax's to the last bit where all rows count, and a batch without the others where not."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.nn.norm import BatchNorm, counting_rows

FLAX = {"momentum": 0.9, "epsilon": 1e-5, "use_fast_variance": False}
X = 5 + 3 * np.random.default_rng(0).normal(size=(6, 3, 3, 4)).astype(np.float32)
VARIABLES = {
    "params": {"scale": jnp.arange(1.0, 5.0), "bias": jnp.arange(4.0)},
    "batch_stats": {"mean": jnp.arange(4.0), "var": jnp.arange(1.0, 5.0)},
}


def apply(x, rows=None, dtype="float32"):
    """Returns the output in training and the new statistics."""

    @jax.jit
    def run(x, rows):
        norm = BatchNorm(dtype)
        if rows is None:
            return norm.apply(VARIABLES, x, train=True, mutable=["batch_stats"])
        with counting_rows(rows):
            return norm.apply(VARIABLES, x, train=True, mutable=["batch_stats"])

    return jax.device_get(run(x, rows))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rows", [None, np.ones(6, bool)], ids=["no rows given", "all rows count"])
def test_it_is_flaxs(rows, dtype):
    x = jnp.asarray(X, dtype)

    @jax.jit
    def flaxs(x):
        return nn.BatchNorm(**FLAX, dtype=dtype).apply(VARIABLES, x, use_running_average=False, mutable=["batch_stats"])

    jax.tree.map(np.testing.assert_array_equal, apply(x, rows, dtype), jax.device_get(flaxs(x)))
    used = BatchNorm(dtype).apply(VARIABLES, x, train=False)
    theirs = nn.BatchNorm(**FLAX, dtype=dtype).apply(VARIABLES, x, use_running_average=True)
    np.testing.assert_array_equal(used, theirs)


def test_rows_that_do_not_count_change_nothing():
    rows = np.array([True, False, True, True, False, True])
    poisoned = np.where(rows[:, None, None, None], X, np.nan)
    out, state = apply(poisoned, rows)
    without, expected = apply(X[rows])
    np.testing.assert_allclose(out[rows], without, rtol=1e-5, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), state, expected)


def test_without_any_row_that_counts_the_statistics_stay():
    _, state = apply(X, np.zeros(6, bool))
    jax.tree.map(np.testing.assert_array_equal, state["batch_stats"], VARIABLES["batch_stats"])
