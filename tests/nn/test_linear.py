"""What is added up over many rows in bfloat16 is added in float32."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.models.rnn import RNN
from attnjax.models.transformer import Embedding, Positions
from attnjax.models.vit import ViT
from attnjax.nn.linear import Linear, output_logits
from attnjax.nn.positions import LearnedPositions, LearnedPositions2D, RelativePositions
from attnjax.nn.recurrent import Recurrent

ROWS = 4096  # ones summed one by one in bfloat16 stay at 256
ONE_TOKEN = jnp.zeros((ROWS, 1), jnp.int32)

# module, inputs, path of a parameter, and how often each entry of it reaches the sum of the outputs
CASES = {
    "bias": (Linear(4, dtype="bfloat16"), (jnp.ones((ROWS, 3)),), "bias", ROWS),
    "token table": (Embedding(2, 1, dtype="bfloat16"), (ONE_TOKEN,), "embedding", [[ROWS], [0]]),
    "positions of tokens": (
        Positions("learned", 2, 4, dtype="bfloat16"), (jnp.ones((ROWS, 1, 4), "bfloat16"), jnp.array([1])),
        "embedding", [[0] * 4, [ROWS] * 4],
    ),
    "positions of patches": (
        LearnedPositions(dtype="bfloat16"), (jnp.ones((ROWS, 2, 4), "bfloat16"),), "embedding", ROWS,
    ),
    "rows and columns": (
        LearnedPositions2D(dtype="bfloat16"), (jnp.ones((ROWS, 4, 4), "bfloat16"), (2, 2)), "rows", 2 * ROWS,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_gradients_of_repeated_rows(name):
    module, inputs, parameter, expected = CASES[name]
    variables = module.init(jax.random.key(0), *inputs)
    gradient = jax.grad(lambda v: module.apply(v, *inputs).astype("float32").sum())(variables)["params"][parameter]
    np.testing.assert_allclose(gradient, np.broadcast_to(expected, gradient.shape), rtol=1e-3)


def test_gradient_of_a_recurrent_bias_over_many_rows():
    layer = Recurrent("rnn", 2, dtype="bfloat16")
    x = jnp.zeros((ROWS, 1, 2), "bfloat16")  # tanh is steepest at 0: each row adds 1
    variables = jax.tree.map(jnp.zeros_like, layer.init(jax.random.key(0), x))
    gradient = jax.grad(lambda v: layer.apply(v, x)[0].astype("float32").sum())(variables)["params"]
    for part in ("input", "hidden"):
        np.testing.assert_allclose(gradient[part]["bias"], ROWS, rtol=1e-3)


RNN_FIELDS = dict(cell="gru", embedding=4, width=4, attention="dot", dropout=0.0)
VIT_FIELDS = dict(patch_size=2, width=8, depth=1, num_heads=2, mlp_dim=8)
MODELS = {
    "token table of a RNN": (
        partial(RNN, 3, 3, **RNN_FIELDS), (jnp.ones((2048, 2), jnp.int32),) * 2,
        lambda params: params["source_embedding"]["embedding"][1],
    ),
    "class token": (partial(ViT, 0, **VIT_FIELDS), (jnp.ones((2048, 4, 4, 1)),), lambda params: params["class_token"]),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_gradients_in_bfloat16_are_those_of_float32(name):
    """Whole models on many equal rows, where sums in bfloat16 lose most of the gradient."""
    make, inputs, parameter = MODELS[name]
    variables = make(dtype="float32").init(jax.random.key(0), *inputs)

    def gradient(dtype):
        loss = jax.grad(lambda v: (make(dtype=dtype).apply(v, *inputs)[..., 0] ** 2).sum())
        return np.asarray(parameter(jax.jit(loss)(variables)["params"]))

    expected = gradient("float32")
    assert np.linalg.norm(gradient("bfloat16") - expected) < 0.05 * np.linalg.norm(expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_logits_are_products_in_the_dtype_with_float32_sums(dtype):
    rng = np.random.default_rng(0)
    x, kernel, gradient = (rng.normal(size=shape).astype("f") for shape in [(2, 3, 64), (64, 5), (2, 3, 5)])
    logits, pull = jax.vjp(lambda x, k: output_logits(x, k, dtype), jnp.asarray(x), jnp.asarray(kernel))
    rounded = [np.asarray(jnp.asarray(a, dtype), np.float64) for a in (x, kernel, gradient)]
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, rounded[0] @ rounded[1], atol=1e-5)
    d_x, d_kernel = pull(jnp.asarray(gradient))
    np.testing.assert_allclose(d_x, rounded[2] @ rounded[1].T, atol=1e-5)
    np.testing.assert_allclose(d_kernel, np.einsum("btd,btv->dv", rounded[0], rounded[2]), atol=1e-5)


def test_relative_biases_are_float32_at_any_precision():
    """Their gradient sums over windows and images after the logits' cast to float32."""
    module = RelativePositions(2)
    assert module.apply(module.init(jax.random.key(0), (2, 2)), (2, 2)).dtype == jnp.float32
