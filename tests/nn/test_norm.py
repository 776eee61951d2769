"""Batch norm: flax's where no rows are given, and that of a batch without the others where they are."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnjax.nn.norm import BatchNorm, counting_rows

FLAX = {"momentum": 0.9, "epsilon": 1e-5, "use_fast_variance": False}
X = 5 + 3 * np.random.default_rng(0).normal(size=(6, 3, 3, 4)).astype(np.float32)
VARIABLES = {
    "params": {"scale": jnp.arange(1.0, 5.0), "bias": jnp.arange(4.0)},
    "batch_stats": {"mean": jnp.arange(4.0), "var": jnp.arange(1.0, 5.0)},
}


@functools.partial(jax.jit, static_argnames="dtype")
def run(x, rows=None, dtype="float32"):
    """Returns the output in training and the new statistics."""
    norm = BatchNorm(dtype)
    if rows is None:
        return norm.apply(VARIABLES, x, train=True, mutable=["batch_stats"])
    with counting_rows(rows):
        return norm.apply(VARIABLES, x, train=True, mutable=["batch_stats"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_is_flaxs(dtype):
    x = jnp.asarray(X, dtype)

    @jax.jit
    def flaxs(x):
        return nn.BatchNorm(**FLAX, dtype=dtype).apply(VARIABLES, x, use_running_average=False, mutable=["batch_stats"])

    expected = jax.device_get(flaxs(x))
    for rows in (None, np.ones(6, bool)):
        found = jax.device_get(run(x, rows, dtype))
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), found, expected)
    used = BatchNorm(dtype).apply(VARIABLES, x, train=False)
    theirs = nn.BatchNorm(**FLAX, dtype=dtype).apply(VARIABLES, x, use_running_average=True)
    np.testing.assert_array_equal(used, theirs)


def test_gradients_are_flaxs():
    """Of the input and the parameters; a weight of each output, so that the gradient is not zero."""
    weight = np.random.default_rng(1).normal(size=X.shape).astype(np.float32)

    def loss(norm, params, x, **train):
        out, _ = norm.apply({**VARIABLES, "params": params}, x, mutable=["batch_stats"], **train)
        return (out * weight).sum()

    ours = jax.grad(functools.partial(loss, BatchNorm()), (0, 1))(VARIABLES["params"], X, train=True)
    flax_norm = nn.BatchNorm(**FLAX)
    theirs = jax.grad(functools.partial(loss, flax_norm), (0, 1))(VARIABLES["params"], X, use_running_average=False)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), ours, theirs)


def test_statistics_survive_a_large_mean():
    """Once the running mean is near it."""
    near = {**VARIABLES, "batch_stats": {"mean": jnp.full(4, 1000.0), "var": jnp.ones(4)}}
    x = np.float32(1000) + 0.01 * X
    out, _ = BatchNorm().apply(
        {**near, "params": {"scale": np.ones(4), "bias": np.zeros(4)}}, x, train=True, mutable=["batch_stats"]
    )
    exact = (x - x.astype(np.float64).mean((0, 1, 2))) / np.sqrt(x.astype(np.float64).var((0, 1, 2)) + 1e-5)
    np.testing.assert_allclose(out, exact, atol=1e-2)


@settings(derandomize=True, database=None, deadline=None, max_examples=20)
@given(rows=st.lists(st.booleans(), min_size=6, max_size=6).filter(any).map(np.array))
def test_rows_that_do_not_count_change_nothing(rows):
    poisoned = np.where(rows[:, None, None, None], X, np.nan)
    out, state = run(poisoned, rows)
    kept = X[rows].astype(np.float64)
    mean, var = kept.mean((0, 1, 2)), kept.var((0, 1, 2))
    expected = (kept - mean) / np.sqrt(var + 1e-5) * np.arange(1, 5) + np.arange(4)
    np.testing.assert_allclose(out[rows], expected, rtol=1e-4, atol=1e-4)
    for name, new in (("mean", mean), ("var", var)):
        moved = 0.9 * np.asarray(VARIABLES["batch_stats"][name]) + 0.1 * new
        np.testing.assert_allclose(state["batch_stats"][name], moved, rtol=1e-4)


def test_without_any_row_that_counts_the_statistics_stay():
    _, state = run(X, np.zeros(6, bool))
    jax.tree.map(np.testing.assert_array_equal, state["batch_stats"], VARIABLES["batch_stats"])
