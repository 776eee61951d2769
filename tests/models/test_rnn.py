import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.errors import UserError
from attnjax.inspection.parameters import count
from attnjax.models.rnn import RNN
from attnjax.nn.kernels import compiling_for
from attnjax.nn.recurrent import Recurrent, bidirectional

B, S, T, V = 3, 6, 5, 11
SMALL = dict(embedding=4, width=8, dropout=0.3)
VARIANTS = [
    dict(cell="rnn", attention="none", bidirectional=False),
    dict(cell="gru", attention="dot", layers=2),
    dict(cell="gru", attention="additive"),
    dict(cell="lstm", attention="dot", layers=2, input_feeding=True),
    dict(cell="lstm", attention="additive", layers=2),
]


@pytest.fixture(scope="module", params=VARIANTS, ids=lambda variant: f"{variant['cell']}-{variant['attention']}")
def model(request):
    return RNN(V, V, **SMALL, **request.param)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    source, target = rng.integers(3, V, (B, S)), rng.integers(3, V, (B, T))
    source[1, 4:] = 0
    return jnp.asarray(source, jnp.int32), jnp.asarray(target, jnp.int32)


@pytest.fixture(scope="module")
def params(model, batch):
    return jax.jit(model.init)(jax.random.key(0), *batch)


def test_a_published_shape_has_its_count():
    """bentrevett's GRU with additive attention, except that attention and query have one bias here instead of two."""
    model = RNN(7_855, 5_893, cell="gru", embedding=256, width=512, attention="additive")
    tokens = jax.ShapeDtypeStruct((1, 4), jnp.int32)
    assert count(jax.eval_shape(model.init, jax.random.key(0), tokens, tokens)) == 20_518_917


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_a_layer_over_time_is_its_steps(cell, apply):
    x = jax.random.normal(jax.random.key(0), (B, S, 4))
    layer = Recurrent(cell, 8)
    params = jax.jit(layer.init)(jax.random.key(1), x)
    outputs, last = apply(layer, params, x)
    state = layer.apply(params, B, method="start")
    for t in range(S):
        state = apply(layer, params, x[:, t], state, method="step")
        np.testing.assert_allclose(outputs[:, t], state[0], atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), state, last)


LENGTHS = (S, 4, 1)


def test_padding_leaves_the_state_alone(apply):
    x = jax.random.normal(jax.random.key(0), (B, S, 4))
    layer = Recurrent("lstm", 8)
    params = jax.jit(layer.init)(jax.random.key(1), x)
    outputs, state = apply(layer, params, x, jnp.arange(S) < jnp.array(LENGTHS)[:, None])
    for row, length in enumerate(LENGTHS):
        alone, alone_state = apply(layer, params, x[row : row + 1, :length])
        np.testing.assert_allclose(outputs[row, :length], alone[0], atol=1e-6)
        np.testing.assert_array_equal(outputs[row, length:], 0)
        np.testing.assert_allclose(state[0][row], alone_state[0][0], atol=1e-6)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])  # one after the other, or both at once
def test_the_backward_direction_reads_each_row_from_its_last_token(backend, apply):
    x = jax.random.normal(jax.random.key(0), (B, S, 4))
    layers = [Recurrent("lstm", 8), Recurrent("lstm", 8)]
    params = [jax.jit(layer.init)(jax.random.key(i), x) for i, layer in enumerate(layers)]
    mask = jnp.arange(S) < jnp.array(LENGTHS)[:, None]
    with compiling_for(backend):
        read_both = jax.jit(lambda params: bidirectional(*map(nn.Module.bind, layers, params), x, mask))
        outputs, *states = read_both(params)
    for row, length in enumerate(LENGTHS):
        read = x[row : row + 1, :length]
        for direction, (order, half) in enumerate([(slice(None), slice(0, 8)), (slice(None, None, -1), slice(8, 16))]):
            alone, state = apply(layers[direction], params[direction], read[:, order])
            np.testing.assert_allclose(outputs[row, :length, half], alone[0, order], atol=1e-6)
            for ours, theirs in zip(states[direction], state, strict=True):
                np.testing.assert_allclose(ours[row], theirs[0], atol=1e-6)
        np.testing.assert_array_equal(outputs[row, length:], 0)


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_gradients_are_those_of_the_steps(cell):
    """The gradient that a layer computes by hand, against automatic differentiation through single steps."""
    x = jax.random.normal(jax.random.key(0), (B, S, 4))
    layer = Recurrent(cell, 8)
    params = jax.jit(layer.init)(jax.random.key(1), x)
    start = jax.tree.map(lambda h: h + 0.3, layer.apply(params, B, method="start"))
    mask = jnp.arange(S) < jnp.array(LENGTHS)[:, None]

    def at_once(params, x, start):
        outputs, last = layer.apply(params, x, mask, start=start)
        return (outputs**2).sum() + sum(jnp.sin(h).sum() for h in last)

    def step_by_step(params, x, start):
        state, total = start, 0.0
        for t in range(S):
            new = layer.apply(params, x[:, t], state, method="step")
            state = jax.tree.map(lambda a, b, t=t: jnp.where(mask[:, t, None], a, b), new, state)
            total += (jnp.where(mask[:, t, None], state[0], 0) ** 2).sum()
        return total + sum(jnp.sin(h).sum() for h in state)

    gradients = [jax.jit(jax.grad(loss, (0, 1, 2)))(params, x, start) for loss in (at_once, step_by_step)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *gradients)


def test_stepping_equals_teacher_forcing(model, batch, params, apply):
    source, target = batch
    expected = apply(model, params, source, target)
    cache = apply(model, params, source, length=T, method="start_cache")
    assert all(leaf.shape[0] == B for leaf in jax.tree.leaves(cache))
    for position in range(T):
        logits, cache = apply(model, params, cache, target[:, position], position, method="step")
        np.testing.assert_allclose(logits, expected[:, position], atol=1e-5)


def test_padding_of_the_source_is_not_seen(model, batch, params, apply):
    source, target = batch
    logits = apply(model, params, source, target)
    np.testing.assert_allclose(apply(model, params, jnp.pad(source, ((0, 0), (0, 3))), target), logits, atol=1e-5)
    np.testing.assert_allclose(apply(model, params, source[1:2, :4], target[1:2]), logits[1:2], atol=1e-5)


def test_attention_weights_come_out(model, batch, params, apply):
    _, state = apply(model, params, *batch, mutable="intermediates")
    if model.attention == "none":
        assert not state
        return
    (weights,) = state["intermediates"]["decoder"]["attention"]
    assert weights.shape == (B, T, S)
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
    np.testing.assert_array_equal(weights[1, :, 4:], 0)


def test_training_drops_and_every_weight_has_a_gradient(model, batch, params):
    @jax.jit
    @jax.value_and_grad
    def loss(params, seed):
        logits = model.apply(params, *batch, train=True, rngs={"dropout": jax.random.key(seed)})
        return -jax.nn.log_softmax(logits)[..., 3].mean()

    one, gradients = loss(params, 0)
    assert one != loss(params, 1)[0]
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0, jax.tree_util.keystr(path)


def test_impossible_fields_are_named(batch):
    for fields, message in [
        (dict(cell="gur"), "did you mean 'gru'"),
        (dict(attention="both"), "Known: additive, dot, none"),
        (dict(attention="none", input_feeding=True), "needs attention=dot"),
    ]:
        with pytest.raises(UserError, match=message):
            jax.eval_shape(RNN(V, V, **SMALL, **fields).init, jax.random.key(0), *batch)
