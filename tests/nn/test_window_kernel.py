"""The fused kernel for windows, run in Python, against explicit products."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.nn.kernels import attention_weights, choose_kernel, compiling_for, partitioned
from attnjax.nn.window_kernel import window_attention


def explicit(qkv_WNPHd, bias_HNN, mask_VNN):
    q, k, v = (qkv_WNPHd[:, :, part].swapaxes(1, 2) for part in range(3))
    mask = None if mask_VNN is None else jnp.tile(mask_VNN, (len(q) // len(mask_VNN), 1, 1))[:, None]
    return (attention_weights(q, k, mask=mask, bias=bias_HNN[None]) @ v).swapaxes(1, 2)


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize(("windows", "tokens"), [(8, 49), (6, 16), (4, 64)])
def test_outputs_and_gradients_are_those_of_explicit_products(windows, tokens, masked):
    rng = np.random.default_rng(0)
    heads, features = 2, 16
    qkv = jnp.asarray(rng.normal(size=(windows, tokens, 3, heads, features)), jnp.float32)
    bias = jnp.asarray(rng.normal(size=(heads, tokens, tokens)), jnp.float32)
    mask = jnp.asarray((rng.random((2, tokens, tokens)) < 0.5) | np.eye(tokens, dtype=bool)) if masked else None
    weight = rng.normal(size=(windows, tokens, heads, features))

    def loss(attend, qkv, bias):
        return (attend(qkv, bias) * weight).sum()

    def ours(qkv, bias):
        return window_attention(qkv, bias, mask, True)

    np.testing.assert_allclose(ours(qkv, bias), explicit(qkv, bias, mask), atol=1e-5)
    found = jax.grad(lambda *x: loss(ours, *x), (0, 1))(qkv, bias)
    expected = jax.grad(lambda *x: loss(lambda q, b: explicit(q, b, mask), *x), (0, 1))(qkv, bias)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_it_is_chosen_for_small_windows_on_one_gpu():
    with compiling_for("gpu"):
        assert choose_kernel("bfloat16", 32, biased=True, window=49)[0] == "windows"
        assert choose_kernel("bfloat16", 32, biased=True, window=81)[0] == "xla"
        assert choose_kernel("bfloat16", 24, biased=True, window=49)[0] == "xla"
        assert choose_kernel("float32", 32, biased=True, window=49)[0] == "xla"
        with partitioned():
            assert choose_kernel("bfloat16", 32, biased=True, window=49)[0] == "xla"
