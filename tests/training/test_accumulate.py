"""Gradient accumulation; on several devices, and for every model, it is in test_devices.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import models
from attnjax.errors import UserError
from attnjax.objectives.classification import ClassificationObjective
from attnjax.training import devices as devices_lib
from attnjax.training.optimizer import OptimizerOptions, make_optimizer
from attnjax.training.state import TrainState
from attnjax.training.step import TrainStep

ROWS, RATE = 32, 0.5


def images(rng):
    batch = {
        "image": rng.normal(size=(ROWS, 8, 8, 1)).astype(np.float32),
        "label": rng.integers(5, size=ROWS).astype(np.int32),
        "mask": np.arange(ROWS) < 27,  # so that the parts weigh differently, the last one least
    }
    return batch, {"image": jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32)}


MODELS = {
    "vit": models.fields("vit", patch_size=4, depth=1, width=8, mlp_dim=16, num_heads=2),
    "resnet": models.fields("resnet", blocks=(1,), features=(4,)),
}


def setup(name):
    """Returns a task, a batch, a state of random weights, and the function that makes a step of so many parts."""
    rng = np.random.default_rng(0)
    task, (batch, example) = ClassificationObjective(models.build(MODELS[name], num_classes=5)), images(rng)
    shapes = jax.eval_shape(task.init, jax.random.key(0), example)
    params, model_state = jax.tree.map(lambda x: (0.5 * rng.normal(size=x.shape)).astype(np.float32), shapes)
    optimizer = make_optimizer(OptimizerOptions(name="sgd", momentum=0.0), rate)
    opt_state = optimizer.init(params)
    start = TrainState(jnp.zeros((), jnp.int32), params, model_state, opt_state, params, jax.random.PRNGKey(0))
    return task, batch, start, lambda parts: TrainStep(task, optimizer, rate, 0.9, parts)


def rate(step):
    return RATE


def assert_near(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-5), one, other)


def assert_moved(before, after):
    moved = [np.abs(a - b).max() > 1e-3 for a, b in zip(*map(jax.tree.leaves, (before, after)), strict=True)]
    assert np.mean(moved) > 0.7  # softmax does not see the bias of keys


def test_four_parts_are_the_whole_batch():
    _, batch, start, make_step = setup("vit")
    whole, whole_metrics = jax.jit(make_step(1))(start, batch)
    parts, parts_metrics = jax.jit(make_step(4))(start, batch)
    assert parts.step == 1
    assert_near(parts.params, whole.params)
    assert_near(parts.ema, whole.ema)
    assert_near(parts_metrics, whole_metrics)
    assert_moved(start.params, whole.params)


def test_batch_statistics_go_through_the_parts_one_after_another():
    task, batch, start, make_step = setup("resnet")
    after, metrics = jax.jit(make_step(4))(start, batch)
    gradient = jax.jit(jax.grad(task.loss, has_aux=True))
    total, weight, model_state = jax.tree.map(np.zeros_like, start.params), 0, start.model_state
    for i in range(4):
        part = {name: x[i::4] for name, x in batch.items()}
        gradients, (tokens, _, model_state) = gradient(start.params, model_state, part, jax.random.key(0))
        total, weight = jax.tree.map(np.add, total, gradients), weight + tokens
    assert metrics["loss"][1] == weight == 27
    assert_near(after.model_state, model_state)
    assert_near(after.params, jax.tree.map(lambda w, g: w - RATE * g / weight, start.params, total))
    assert_moved(start.params, after.params)
    assert_moved(start.model_state, after.model_state)


class Draws:
    """A task whose metric is what it draws."""

    def loss(self, params, model_state, batch, rng):
        draw = jax.random.uniform(rng)
        return params.sum() * draw, (1.0, {"draw": (draw, 1.0), "rows": (1.0 * len(batch["x"]), 1.0)}, model_state)


def test_each_part_of_each_step_draws_its_own_numbers():
    optimizer = make_optimizer(OptimizerOptions(), rate)
    params = jnp.ones(2)
    start = TrainState(jnp.zeros((), jnp.int32), params, {}, optimizer.init(params), None, jax.random.PRNGKey(0))
    step = TrainStep(Draws(), optimizer, rate, accumulate=4)
    seen = set()
    for number in range(2):
        start, metrics = step(start, {"x": np.zeros((12, 3))})
        rngs = [jax.random.fold_in(jax.random.fold_in(start.rng, number), part) for part in range(4)]
        draws = [float(jax.random.uniform(rng)) for rng in rngs]
        assert metrics["draw"][0] == pytest.approx(sum(draws)) and metrics["draw"][1] == 4
        assert metrics["rows"] == (12, 4)
        seen.update(draws)
    assert len(seen) == 8


def test_a_batch_must_divide_over_devices_and_parts():
    devices = devices_lib.make()
    assert devices_lib.rows_multiple(devices) == 8 and devices_lib.rows_multiple(devices, 3) == 24
    devices_lib.check_batch_size(devices, "batch_size", 48, 3)
    with pytest.raises(
        UserError, match="batch_size=32 does not divide over 8 devices in 3 parts; use a multiple of 24"
    ):
        devices_lib.check_batch_size(devices, "batch_size", 32, 3)
    with pytest.raises(UserError, match="accumulate=0: it should be 1 or more"):
        devices_lib.rows_multiple(devices, 0)
