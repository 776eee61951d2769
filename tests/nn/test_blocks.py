import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.errors import UserError
from attnjax.nn.activations import activation
from attnjax.nn.blocks import BlockOptions, EncoderBlock
from attnjax.nn.dropout import DropPath
from attnjax.nn.kernels import compiling_for
from attnjax.nn.norm import LayerNorm
from attnjax.nn.pooling import pool


def test_drop_path_drops_whole_examples_and_keeps_the_mean():
    y = jnp.ones((4000, 2, 3))
    out = np.asarray(DropPath(0.25).apply({}, y, train=True, rngs={"dropout": jax.random.key(0)}))
    per_example = out.reshape(4000, -1)
    assert set(np.unique(per_example).round(4)) == {0, np.float32(1 / 0.75).round(4)}
    assert (per_example == per_example[:, :1]).all()
    assert abs(out.mean() - 1) < 0.05
    np.testing.assert_array_equal(DropPath(0.25).apply({}, y, train=False), y)


def test_layer_norm_survives_a_large_mean():
    x = jnp.asarray(1000 + 0.01 * np.random.default_rng(0).normal(size=(4, 512)), jnp.float32)
    norm = LayerNorm(1e-6)
    out = norm.apply(norm.init(jax.random.key(0), x), x)
    np.testing.assert_allclose(out.std(-1), 1, atol=0.02)


def test_encoder_block_is_permutation_equivariant_and_differs_in_training(apply):
    x = jax.random.normal(jax.random.key(0), (2, 6, 8))
    block = EncoderBlock(num_heads=2, mlp_dim=16, options=BlockOptions(dropout=0.5))
    params = jax.jit(block.init, static_argnames="train")(jax.random.key(1), x, train=False)
    order = jnp.array([3, 1, 5, 0, 2, 4])
    out = apply(block, params, x, train=False)
    np.testing.assert_allclose(apply(block, params, x[:, order], train=False), out[:, order], atol=1e-5)
    assert not np.allclose(apply(block, params, x, train=True, rngs={"dropout": jax.random.key(2)}), out)


def test_gelu_kinds_differ_as_published():
    x = jnp.linspace(-4, 4, 1001)
    difference = jnp.abs(activation("gelu")(x) - activation("gelu_tanh")(x)).max()
    assert 4e-4 < difference < 5e-4


def test_pooling_by_name():
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    np.testing.assert_array_equal(pool(x, "max", 2, 2)[0, :, :, 0], [[5, 7], [13, 15]])
    np.testing.assert_array_equal(pool(x, "average", 2, 2)[0, :, :, 0], [[2.5, 4.5], [10.5, 12.5]])


def test_unknown_names():
    with pytest.raises(UserError, match="gelu"):
        activation("gelo")
    with pytest.raises(UserError, match="average"):
        pool(jnp.zeros((1, 4, 4, 1)), "avrage", 2, 2)


@pytest.mark.parametrize("kind", ["gelu", "gelu_tanh"])
def test_gelu_on_accelerators_is_that_of_cpus(kind):
    x = jnp.linspace(-6, 6, 2001)
    gradient = jax.vmap(jax.grad(activation(kind)))
    with compiling_for("gpu"):
        value, slope = activation(kind)(x), jax.vmap(jax.grad(activation(kind)))(x)
        half = activation(kind)(x.astype(jnp.bfloat16))
    np.testing.assert_allclose(value, activation(kind)(x), atol=1e-6)
    np.testing.assert_allclose(slope, gradient(x), atol=5e-6)
    assert half.dtype == jnp.bfloat16


def test_layer_norm_is_flaxs():
    """Output and gradients, in float32; in bfloat16 the output."""
    rng = np.random.default_rng(0)
    x, weight = (jnp.asarray(rng.normal(size=(3, 5, 16)), jnp.float32) for _ in range(2))
    params = {"scale": jnp.asarray(rng.normal(size=16)), "bias": jnp.asarray(rng.normal(size=16))}

    def loss(norm, params, x):
        return (norm.apply({"params": params}, x) * weight).sum()

    ours, theirs = LayerNorm(1e-5), nn.LayerNorm(epsilon=1e-5, use_fast_variance=False)
    for norm in (ours, theirs):
        assert jax.tree.map(jnp.shape, norm.init(jax.random.key(0), x)) == {"params": {"scale": (16,), "bias": (16,)}}
    found, expected = (jax.value_and_grad(functools.partial(loss, norm), (0, 1))(params, x) for norm in (ours, theirs))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, expected)
    half = LayerNorm(1e-5, "bfloat16").apply({"params": params}, x.astype(jnp.bfloat16))
    np.testing.assert_allclose(half, theirs.apply({"params": params}, x), rtol=0.05, atol=0.05)
