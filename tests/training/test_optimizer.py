import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnjax import models
from attnjax.errors import UserError
from attnjax.training.optimizer import OPTIMIZERS, OptimizerOptions, decay_mask, make_optimizer, make_schedule


def rates(steps=100, **changes):
    schedule = make_schedule(OptimizerOptions(learning_rate=2.0, **changes), steps)
    return [float(schedule(step)) for step in range(steps + 1)]


def test_constant_and_its_warmup():
    assert rates(schedule="constant") == [2.0] * 101
    warm = rates(schedule="constant", warmup_steps=10)
    np.testing.assert_allclose(warm[:11], np.linspace(0, 2, 11), atol=1e-6)
    assert warm[11:] == [2.0] * 90


@settings(derandomize=True, database=None, deadline=None, max_examples=25)
@given(
    schedule=st.sampled_from(["constant", "cosine", "linear", "inverse_sqrt", "step", "noam"]),
    steps=st.integers(2, 40),
    warmup=st.integers(0, 39),
    end=st.floats(0, 2),
)
def test_every_schedule_rises_to_its_peak_and_never_rises_again(schedule, steps, warmup, end):
    warmup = min(warmup, steps - 1)
    own = {"end_learning_rate": end} if schedule in ("cosine", "linear") else {}
    own |= {"boundaries": (warmup + 1, warmup + 3)} if schedule == "step" else {}
    values = np.array(rates(steps, schedule=schedule, warmup_steps=warmup, **own))
    peak = max(warmup - (schedule == "noam"), 0)
    assert np.isfinite(values).all() and values.min() >= 0
    assert (np.diff(values[: peak + 1]) > 0).all()
    assert (np.diff(values[peak:]) <= 1e-6).all()
    if schedule != "noam":
        np.testing.assert_allclose(values.max(), 2.0, rtol=1e-6)
        np.testing.assert_allclose(values[:peak], 2.0 * np.arange(peak) / max(1, warmup), rtol=1e-5)
    if own.keys() == {"end_learning_rate"}:
        np.testing.assert_allclose(values[-1], end, atol=1e-6)


def test_cosine_and_linear_end_at_the_given_rate():
    cosine = rates(schedule="cosine", end_learning_rate=0.5)
    np.testing.assert_allclose([cosine[0], cosine[50], cosine[100]], [2.0, 1.25, 0.5], atol=1e-6)
    steps = rates(schedule="step", boundaries=(40, 80), decay_factor=0.5, warmup_steps=10)
    assert [steps[at] for at in (5, 10, 39, 40, 79, 80, 100)] == [1.0, 2.0, 2.0, 1.0, 1.0, 0.5, 0.5]
    with pytest.raises(UserError, match="after the warm-up"):
        rates(schedule="step", boundaries=(10,), warmup_steps=10)
    linear = rates(schedule="linear", warmup_steps=20)
    np.testing.assert_allclose([linear[20], linear[60], linear[100]], [2.0, 1.0, 0.0], atol=1e-6)


def test_inverse_sqrt_peaks_after_the_warmup():
    values = rates(schedule="inverse_sqrt", warmup_steps=25)
    np.testing.assert_allclose([values[25], values[100]], [2.0, 1.0], atol=1e-6)


def test_noam_is_the_papers_formula():
    values = rates(5000, schedule="noam", warmup_steps=4000, noam_width=512)
    for step in (1, 10, 4000, 5000):
        expected = 2.0 * 512**-0.5 * min(step**-0.5, step * 4000**-1.5)
        np.testing.assert_allclose(values[step - 1], expected, rtol=1e-5)
    base = make_schedule(OptimizerOptions(learning_rate=1.0, schedule="noam", warmup_steps=4000), 1)
    np.testing.assert_allclose(base(3999), 6.99e-4, rtol=1e-3)


def test_kernels_decay_and_nothing_else_does():
    model = models.build(models.fields("vit", patch_size=4, width=8, depth=1, num_heads=2, mlp_dim=16), num_classes=3)
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]
    mask = jax.tree_util.tree_leaves_with_path(decay_mask(params))
    decayed = {jax.tree_util.keystr(path, simple=True, separator="/") for path, yes in mask if yes}
    assert all(path.endswith("/kernel") for path in decayed) and "block0/attention/query/kernel" in decayed
    kept = {jax.tree_util.keystr(path, simple=True, separator="/") for path, yes in mask if not yes}
    assert {"class_token", "positions/embedding", "block0/norm1/scale", "block0/attention/query/bias"} <= kept
    assert not any(path.endswith("/kernel") for path in kept)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_descends_and_decays_only_kernels(name):
    decay = 0.0 if name == "adam" else 0.1
    config = OptimizerOptions(name=name, weight_decay=decay)
    optimizer = make_optimizer(config, make_schedule(OptimizerOptions(learning_rate=0.1, schedule="constant"), 10))
    params = {"kernel": jnp.full((2, 2), 3.0), "bias": jnp.full((2,), 3.0)}
    state = optimizer.init(params)
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), state, params)
    moved = optax.apply_updates(params, updates)
    np.testing.assert_array_equal(moved["bias"], 3.0)
    assert (moved["kernel"] < 3.0).all() == (decay > 0)
    updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, params), state, params)
    assert all((u < 0).all() for u in jax.tree.leaves(updates))


def test_sgd_with_momentum_is_the_textbook_rule():
    optimizer = make_optimizer(OptimizerOptions(name="sgd", momentum=0.9), lambda step: 0.1)
    params, state = jnp.ones(()), None
    state = optimizer.init(params)
    velocity, expected = 0.0, 1.0
    for _ in range(5):
        velocity = 0.9 * velocity + 2 * expected
        expected -= 0.1 * velocity
        updates, state = optimizer.update(2 * params, state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params, expected, rtol=1e-5)


def test_gradients_are_clipped_by_their_global_norm():
    optimizer = make_optimizer(OptimizerOptions(name="sgd", momentum=0.0, clip_norm=1.0), lambda step: 1.0)
    params = {"a": jnp.zeros(3), "b": jnp.zeros(4)}
    updates, _ = optimizer.update(jax.tree.map(lambda p: p + 10, params), optimizer.init(params), params)
    np.testing.assert_allclose(optax.tree.norm(updates), 1.0, rtol=1e-6)


def test_unknown_names_and_impossible_choices():
    with pytest.raises(UserError, match="did you mean 'adamw'"):
        make_optimizer(OptimizerOptions(name="adamww"), lambda step: 1.0)
    with pytest.raises(UserError, match="did you mean 'cosine'"):
        make_schedule(OptimizerOptions(schedule="cosin"), 10)
    with pytest.raises(UserError, match="warmup_steps=10 leaves nothing of 10 steps"):
        make_schedule(OptimizerOptions(warmup_steps=10), 10)
    with pytest.raises(UserError, match="needs adamw, lamb or sgd"):
        make_optimizer(OptimizerOptions(name="adam", weight_decay=0.1), lambda step: 1.0)
