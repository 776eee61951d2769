import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.errors import UserError
from attnjax.inspection.parameters import count
from attnjax.models.rnn import RNN
from attnjax.nn.recurrent import Recurrent

B, S, T, V = 3, 6, 5, 11
SMALL = dict(embedding=4, width=8, dropout=0.3)
VARIANTS = [
    dict(cell="rnn", attention="none", bidirectional=False),
    dict(cell="gru", attention="additive"),
    dict(cell="lstm", attention="dot", layers=2, input_feeding=True),
    dict(cell="lstm", attention="additive", layers=2),
]


@pytest.fixture(params=VARIANTS, ids=lambda variant: f"{variant['cell']}-{variant['attention']}")
def model(request):
    return RNN(V, V, **SMALL, **request.param)


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    source, target = rng.integers(3, V, (B, S)), rng.integers(3, V, (B, T))
    source[1, 4:] = 0
    return jnp.asarray(source, jnp.int32), jnp.asarray(target, jnp.int32)


@pytest.fixture
def params(model, batch):
    return model.init(jax.random.key(0), *batch)


def test_a_published_shape_has_its_count():
    """bentrevett's GRU with additive attention, except that attention and query have one bias here instead of two."""
    model = RNN(7_855, 5_893, cell="gru", embedding=256, width=512, attention="additive")
    tokens = jax.ShapeDtypeStruct((1, 4), jnp.int32)
    assert count(jax.eval_shape(model.init, jax.random.key(0), tokens, tokens)) == 20_518_917


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_a_layer_over_time_is_its_steps(cell):
    x = jax.random.normal(jax.random.key(0), (B, S, 4))
    layer = Recurrent(cell, 8)
    params = layer.init(jax.random.key(1), x)
    outputs, last = layer.apply(params, x)
    state = layer.apply(params, B, method="start")
    for t in range(S):
        state = layer.apply(params, x[:, t], state, method="step")
        np.testing.assert_allclose(outputs[:, t], state[0], atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), state, last)


@pytest.mark.parametrize("reverse", [False, True])
def test_padding_leaves_the_state_alone(reverse):
    x = jax.random.normal(jax.random.key(0), (B, S, 4))
    layer = Recurrent("lstm", 8)
    params = layer.init(jax.random.key(1), x)
    mask = jnp.arange(S) < jnp.array([[S], [4], [1]])
    outputs, state = layer.apply(params, x, mask, reverse=reverse)
    for row, length in enumerate((S, 4, 1)):
        alone, alone_state = layer.apply(params, x[row : row + 1, :length], reverse=reverse)
        np.testing.assert_allclose(outputs[row, :length], alone[0], atol=1e-6)
        np.testing.assert_array_equal(outputs[row, length:], 0)
        np.testing.assert_allclose(state[0][row], alone_state[0][0], atol=1e-6)


def test_stepping_equals_teacher_forcing(model, batch, params):
    source, target = batch
    expected = model.apply(params, source, target)
    cache = model.apply(params, source, length=T, method="start_cache")
    assert all(leaf.shape[0] == B for leaf in jax.tree.leaves(cache))
    for position in range(T):
        logits, cache = model.apply(params, cache, target[:, position], position, method="step")
        np.testing.assert_allclose(logits, expected[:, position], atol=1e-5)


def test_padding_of_the_source_is_not_seen(model, batch, params):
    source, target = batch
    logits = model.apply(params, source, target)
    np.testing.assert_allclose(model.apply(params, jnp.pad(source, ((0, 0), (0, 3))), target), logits, atol=1e-5)
    np.testing.assert_allclose(model.apply(params, source[1:2, :4], target[1:2]), logits[1:2], atol=1e-5)


def test_attention_weights_come_out(model, batch, params):
    _, state = model.apply(params, *batch, mutable=["intermediates"])
    if model.attention == "none":
        assert not state
        return
    (weights,) = state["intermediates"]["decoder"]["attention"]
    assert weights.shape == (B, T, S)
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
    np.testing.assert_array_equal(weights[1, :, 4:], 0)


def test_training_drops_and_every_weight_has_a_gradient(model, batch, params):
    def loss(params, seed):
        logits = model.apply(params, *batch, train=True, rngs={"dropout": jax.random.key(seed)})
        return -jax.nn.log_softmax(logits)[..., 3].mean()

    assert loss(params, 0) != loss(params, 1)
    for path, gradient in jax.tree_util.tree_leaves_with_path(jax.grad(loss)(params, 0)):
        assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0, jax.tree_util.keystr(path)


def test_impossible_fields_are_named(batch):
    for fields, message in [
        (dict(cell="gur"), "did you mean 'gru'"),
        (dict(attention="both"), "Known: additive, dot, none"),
        (dict(attention="none", input_feeding=True), "needs attention=dot"),
    ]:
        with pytest.raises(UserError, match=message):
            RNN(V, V, **SMALL, **fields).init(jax.random.key(0), *batch)
