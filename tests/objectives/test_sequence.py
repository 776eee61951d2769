import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import decoding, models
from attnjax.data.text.pipeline import Batching, Pairs, Sentences, train_iterator
from attnjax.metrics import sums as metrics
from attnjax.objectives.losses import SMOOTHINGS, token_losses
from attnjax.objectives.sequence import SequenceObjective, next_tokens
from attnjax.training import devices as devices_lib
from attnjax.training import state
from attnjax.training.optimizer import OptimizerOptions, make_optimizer
from attnjax.training.step import TrainStep

V, WIDTH = 14, 8
RNN = dict(embedding=8, width=8, dropout=0.0)
MODELS = {
    "transformer": models.fields(
        "transformer", width=8, mlp_dim=16, num_heads=2, encoder_depth=1, decoder_depth=1, dropout=0.0, max_length=32
    ),
    "rnn": models.fields("rnn", cell="gru", attention="none", **RNN),
    "rnn-dot": models.fields("rnn", cell="lstm", attention="dot", input_feeding=True, **RNN),
    "rnn-additive": models.fields("rnn", cell="gru", attention="additive", **RNN),
}


def make_task(name):
    return SequenceObjective(models.build(MODELS[name], source_vocabulary=V, target_vocabulary=V))


def weights(task):
    """Returns random parameters, large enough that the most probable tokens differ between sentences."""
    example = {name: jax.ShapeDtypeStruct((1, 4), jnp.int32) for name in ("source", "target")}
    shapes, _ = jax.eval_shape(task.init, jax.random.key(0), example)
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: (0.7 * rng.normal(size=x.shape)).astype(np.float32), shapes)


def make_batch(seed=0, rows=16):
    """Pairs of random lengths, padded to WIDTH tokens (target: WIDTH + 1)."""
    rng = np.random.default_rng(seed)
    sides = np.zeros((2, rows, WIDTH + 1), np.int32)
    for i, length in np.ndenumerate(rng.integers(2, WIDTH + 1, (2, rows))):
        sides[i][: length - 1], sides[i][length - 1] = rng.integers(4, V, length - 1), 2
    target = np.concatenate([np.ones((rows, 1), np.int32), sides[1, :, :-1]], 1)
    return {"source": sides[0, :, :-1], "target": target, "mask": np.ones(rows, bool)}


def wider(x):
    return np.pad(x, ((0, 0), (0, 3))) if x.ndim == 2 else x


# The loss by hand


class Bigrams(nn.Module):
    """Logits that depend on the last token alone: the one that FOLLOWS it has probability 1/2."""

    @nn.compact
    def __call__(self, source, target, *, train=False, **packing):
        table = np.zeros((8, 8), np.float32)
        for token, follower in FOLLOWS.items():
            table[token, follower] = np.log(7)
        return jnp.asarray(table)[target]


FOLLOWS = {1: 5, 5: 4, 4: 2, 3: 6, 6: 6, 2: 2, 0: 0, 7: 7}
BIGRAMS = {
    "source": np.array([[5, 2, 0], [3, 4, 2]], np.int32),
    "target": np.array([[1, 5, 4, 3, 2, 0], [1, 3, 6, 2, 0, 0]], np.int32),
}
# First row: 5 and 4 are predicted, 3 after 4 and 2 after 3 are not. Second: 6 after 3 is, 3 after 1 and 2 after 6 not.
RIGHT, WRONG = 3, 4


def test_the_target_is_shifted_exactly_once():
    expected = RIGHT * np.log(2) + WRONG * np.log(14)
    task = SequenceObjective(Bigrams())
    total, (weight, found, model_state) = task.loss({}, {}, BIGRAMS, jax.random.key(0))
    np.testing.assert_allclose(total, expected, rtol=1e-6)
    assert weight == RIGHT + WRONG and model_state == {}
    assert found["accuracy"] == (RIGHT, weight)
    for sums in (found["loss"], found["nll"], task.evaluate({}, {}, BIGRAMS)["loss"]):
        np.testing.assert_allclose(sums, (expected, weight), rtol=1e-6)
    np.testing.assert_array_equal(next_tokens(BIGRAMS), BIGRAMS["target"][:, 1:])


def test_the_token_after_a_packed_pair_carries_no_loss():
    """The pairs of BIGRAMS and a third in one row: neither 1 after 2 (next pair) nor 0 after 2 (padding) counts."""
    pairs = [[1, 5, 4, 3, 2], [1, 3, 6, 2], [1, 5, 2]]
    segments = [[i + 1] * len(pair) for i, pair in enumerate(pairs)]
    batch = {
        "target": np.array([[*np.concatenate(pairs), 0, 0]], np.int32),
        "target_segments": np.array([[*np.concatenate(segments), 0, 0]], np.int32),
        "source": np.ones((1, 3), np.int32),
        **{f"{side}_{what}": np.zeros((1, 14), np.int32) for side, what in PACKING},
    }
    np.testing.assert_array_equal(next_tokens(batch), [[5, 4, 3, 2, 0, 3, 6, 2, 0, 5, 2, 0, 0]])
    total, (weight, found, _) = SequenceObjective(Bigrams()).loss({}, {}, batch, jax.random.key(0))
    np.testing.assert_allclose(total, (RIGHT + 1) * np.log(2) + (WRONG + 1) * np.log(14), rtol=1e-6)
    assert weight == RIGHT + WRONG + 2 and found["accuracy"] == (RIGHT + 1, weight)


PACKING = [("source", "segments"), ("source", "positions"), ("target", "positions")]


@pytest.mark.parametrize("form", SMOOTHINGS)
def test_smoothing_reaches_the_loss_and_not_the_evaluation(form):
    task, plain = SequenceObjective(Bigrams(), 0.2, form), SequenceObjective(Bigrams())
    total, (_, found, _) = task.loss({}, {}, BIGRAMS, jax.random.key(0))
    logits, labels = Bigrams().apply({}, None, BIGRAMS["target"][:, :-1]), BIGRAMS["target"][:, 1:]
    np.testing.assert_allclose(total, token_losses(logits, labels, smoothing=0.2, form=form)[0].sum(), rtol=1e-6)
    others = [SequenceObjective(Bigrams(), 0.2, other) for other in {*SMOOTHINGS} - {form}]
    for other in (plain, *others):
        assert abs(other.loss({}, {}, BIGRAMS, jax.random.key(0))[0] - total) > 0.01
    assert found["loss"][0] == total
    expected = plain.evaluate({}, {}, BIGRAMS)["loss"]
    for sums in (found["nll"], task.evaluate({}, {}, BIGRAMS)["loss"]):
        np.testing.assert_allclose(sums, expected, rtol=1e-6)


# The loss of complete models


def test_packed_pairs_have_the_loss_of_single_ones():
    rng = np.random.default_rng(0)

    def sentences(bos):
        rows = [[*bos, *rng.integers(4, V, rng.integers(1, WIDTH)), 2] for _ in range(60)]
        starts = np.cumsum([0, *map(len, rows)])
        return Sentences(np.concatenate(rows).astype(np.int32), starts)

    pairs = Pairs(sentences([]), sentences([1]))
    task = make_task("transformer")
    params, evaluate = weights(task), jax.jit(task.evaluate)
    found = {}
    for method in ("bucket", "pack"):
        batching = Batching(method, max_tokens=16 * 24, max_length=24, shapes=1)
        batches, total = train_iterator(lambda epoch: pairs, batching, seed=0), None
        while batches.get_state()["epoch"] == 0:
            batch = next(batches)
            assert ("target_segments" in batch) == (method == "pack")
            total = metrics.add(total, evaluate(params, {}, batch))
        batches.close()
        found[method] = jax.device_get(total)
    for name, (value, tokens) in found["bucket"].items():
        np.testing.assert_allclose(found["pack"][name][0], value, rtol=1e-5)
        assert found["pack"][name][1] == tokens == (pairs.target.lengths - 1).sum()


@pytest.fixture(scope="module", params=["transformer", "rnn-dot"])
def reference(request):
    """An objective, parameters, a batch, and the batch's loss, token count, metrics and gradients on one device."""
    task, batch = make_task(request.param), make_batch()
    params, gradient = weights(task), jax.jit(jax.value_and_grad(task.loss, has_aux=True))
    (total, (tokens, found, _)), gradients = gradient(params, {}, batch, jax.random.key(0))
    return task, params, batch, (total, tokens, found), gradients


def test_padding_changes_nothing(reference):
    task, params, batch, (total, tokens, found), _ = reference
    wide = {name: wider(np.insert(x, np.arange(1, 16, 2), 0, axis=0)) for name, x in batch.items()}
    assert wide["source"].shape == (24, WIDTH + 3) and not wide["source"][1].any()
    other, (other_tokens, other_found, _) = jax.jit(task.loss)(params, {}, wide, jax.random.key(0))
    assert tokens == other_tokens == (batch["target"] > 1).sum()
    np.testing.assert_allclose(other, total, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), other_found, found)


@pytest.mark.parametrize(
    ("reference", "accumulate"), [("transformer", 1), ("transformer", 4), ("rnn-dot", 4)], indirect=["reference"]
)
def test_a_step_on_eight_devices_with_padding_is_one_devices_without(reference, accumulate):
    """Devices have different numbers of tokens, the last ones none; with gradient accumulation each splits its rows."""
    task, params, batch, (_, tokens, found), gradients = reference
    wide = {name: wider(np.concatenate([x, 0 * x])) for name, x in batch.items()}
    devices, rate = devices_lib.make(), 0.5
    optimizer = make_optimizer(OptimizerOptions(name="sgd", momentum=0.0), lambda step: rate)
    start = state.TrainState(jnp.zeros((), jnp.int32), params, {}, optimizer.init(params), None, jax.random.PRNGKey(0))
    step = devices.train_step(TrainStep(task, optimizer, lambda step: rate, accumulate=accumulate))
    after, sums = step(devices.place(start), wide)
    assert jax.device_count() == 8 and sums["loss"][1] == tokens
    expected = jax.tree.map(lambda w, g: w - rate * g / tokens, params, gradients)
    changed = 0
    for new, right, old in zip(*map(jax.tree.leaves, (after.params, expected, params)), strict=True):
        np.testing.assert_allclose(new, right, atol=1e-5)
        changed += np.abs(right - old).max() > 1e-3
    assert changed > 0.8 * len(jax.tree.leaves(params))
    for name, value in found.items():
        np.testing.assert_allclose(sums[name], value, rtol=1e-5)


# Searching


@pytest.mark.parametrize("name", MODELS)
def test_greedy_on_eight_devices_is_one_beam_on_one_device(name, monkeypatch):
    """And its log-probabilities equal those of teacher forcing on the outputs."""
    task, source = make_task(name), make_batch()["source"]
    variables, options = (weights(task), {}), decoding.Options(12)
    lengths = np.arange(1, 17, dtype=np.int32).clip(3, 12)

    def generate(variables, batch):
        return task.generate(*variables, {"source": batch[0]}, options, batch[1])

    greedy = jax.device_get(devices_lib.make().per_example(generate)(variables, (source, lengths)))
    monkeypatch.setattr(decoding, "greedy", decoding.beam_search)
    beam = jax.device_get(jax.jit(generate)(variables, (source, lengths)))
    np.testing.assert_array_equal(greedy.tokens, beam.tokens)
    np.testing.assert_allclose(greedy.log_probs, beam.log_probs, atol=1e-5)
    np.testing.assert_allclose(greedy.scores, beam.scores, atol=1e-4)
    assert len({tuple(row) for row in greedy.tokens[:, 0].tolist()}) > 5  # so that equality is not trivial
    assert (greedy.lengths[:, 0] <= lengths).all() and (greedy.lengths[:, 0] == lengths).any()

    tokens = greedy.tokens[:, 0]
    batch = {"source": source, "target": np.pad(tokens, ((0, 0), (1, 0)), constant_values=1)}
    taught = decoding.score(jax.jit(task.logits)(*variables, batch), tokens, options)
    np.testing.assert_allclose(taught.log_probs, greedy.log_probs[:, 0], atol=1e-4)
    np.testing.assert_allclose(taught.scores, greedy.scores[:, 0], rtol=1e-4)
