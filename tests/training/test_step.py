import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import models
from attnjax.data.images.augment import Augmentation
from attnjax.data.images.batch_ops import draw_mix
from attnjax.data.images.format import ImageFormat
from attnjax.data.images.preparation import prepare
from attnjax.metrics import sums as metrics
from attnjax.objectives.classification import ClassificationObjective
from attnjax.training import devices as devices_lib
from attnjax.training import state
from attnjax.training.optimizer import OptimizerOptions, make_optimizer
from attnjax.training.step import TrainStep, make_eval_step

MODELS = {
    "mlp": models.fields("mlp", widths=(16, 8)),
    "lenet": models.fields("lenet"),
    "resnet": models.fields("resnet", blocks=(1, 1), features=(8, 16)),
    "vit": models.fields("vit", patch_size=8, width=16, depth=2, num_heads=2, mlp_dim=32),
}
EXAMPLE = {"image": jax.ShapeDtypeStruct((1, 32, 32, 1), jnp.float32)}


def random_batch(seed, mask=True, mixed=False):
    rng = np.random.default_rng(seed)
    batch = {
        "image": rng.normal(size=(16, 32, 32, 1)).astype(np.float32),
        "label": rng.integers(5, size=16).astype(np.int32),
        "mask": np.arange(16) < 13 if mask else np.ones(16, bool),
    }
    if mixed:
        batch["label_other"] = rng.integers(5, size=16).astype(np.int32)
        batch["label_weight"] = rng.random(16).astype(np.float32)
    return batch


def setup(name, ema_decay=0.0, label_smoothing=0.0):
    task = ClassificationObjective(models.build(MODELS[name], num_classes=5), label_smoothing)
    schedule = lambda step: jnp.asarray(0.1)  # noqa: E731
    optimizer = make_optimizer(OptimizerOptions(name="sgd", weight_decay=1e-3), schedule)
    start = state.create(task, optimizer, EXAMPLE, seed=0, ema=ema_decay > 0)
    if name == "vit":  # its head starts at zero, which would hide most gradients
        start.params["head"]["kernel"] = jax.random.normal(jax.random.key(3), (16, 5))
    return task, start, TrainStep(task, optimizer, schedule, ema_decay)


@pytest.mark.parametrize("name", MODELS)
def test_pmap_over_eight_devices_equals_one_device(name):
    task, start, train_step = setup(name)
    assert jax.device_count() == 8
    devices = devices_lib.make()
    one, many = start, devices.place(start)
    one_step, many_step = jax.jit(train_step), devices.train_step(train_step)
    for seed in range(3):
        batch = random_batch(seed, mask=name != "resnet")
        one, one_metrics = one_step(one, batch)
        many, many_metrics = many_step(many, batch)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(many), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5)
    a, b = metrics.means(one_metrics), metrics.means(many_metrics)
    assert a == pytest.approx(b, rel=1e-4)
    changed = [not np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (start, one)), strict=True)]
    assert np.mean(changed) > 0.8

    variables, batch = (one.params, one.model_state), random_batch(9)
    eval_step = make_eval_step(task)
    a = metrics.means(jax.jit(eval_step)(variables, batch))
    assert a == pytest.approx(metrics.means(devices.evaluate(eval_step)(variables, batch)), rel=1e-4)


def test_batch_statistics_are_those_of_the_whole_batch():
    _, start, train_step = setup("resnet")
    batch = random_batch(0, mask=False)
    batch["image"][:2] += 5  # one device sees other images than the rest
    kernel = np.asarray(start.params["stem"]["kernel"])
    devices = devices_lib.make()
    after, _ = devices.train_step(train_step)(devices.place(start), batch)
    maps = jax.lax.conv_general_dilated(
        batch["image"], kernel, (1, 1), [(1, 1), (1, 1)], dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    statistics = after.model_state["batch_stats"]["stem_norm"]
    np.testing.assert_allclose(statistics["mean"], 0.1 * maps.mean((0, 1, 2)), atol=1e-5)
    np.testing.assert_allclose(statistics["var"], 0.9 + 0.1 * maps.var((0, 1, 2)), rtol=1e-4)


def test_masked_rows_change_nothing():
    _, start, train_step = setup("vit")
    batch = random_batch(0)
    other = {**batch, "image": np.where(batch["mask"][:, None, None, None], batch["image"], 7.0)}
    a, _ = jax.jit(train_step)(start, batch)
    b, _ = jax.jit(train_step)(start, other)
    for x, y in zip(jax.tree.leaves(a.params), jax.tree.leaves(b.params), strict=True):
        np.testing.assert_array_equal(x, y)


def test_training_learns_the_batch():
    _, start, train_step = setup("mlp")
    step, batch = jax.jit(train_step), random_batch(0)
    _, first = step(start, batch)
    for _ in range(60):
        start, last = step(start, batch)
    assert metrics.means(last)["loss"] < 0.1 * metrics.means(first)["loss"]
    assert metrics.means(last)["accuracy"] == 1


def test_ema_follows_the_weights():
    _, start, train_step = setup("mlp", ema_decay=0.99)
    after, _ = jax.jit(train_step)(start, random_batch(0))
    for old, new, mean in zip(*map(jax.tree.leaves, (start.params, after.params, after.ema)), strict=True):
        np.testing.assert_allclose(mean, 0.1 * old + 0.9 * new, atol=1e-6)  # (1 + 0) / (10 + 0) at the first step
    assert after.eval_params is after.ema


def test_smoothed_and_mixed_loss_by_hand():
    task, start, _ = setup("mlp", label_smoothing=0.1)
    batch = random_batch(0, mixed=True)
    total, (weight, _, _) = task.loss(start.params, start.model_state, batch, jax.random.key(0))
    log_p = np.asarray(jax.nn.log_softmax(task.logits(start.params, start.model_state, batch["image"])))
    expected = 0.0
    for i in np.flatnonzero(batch["mask"]):
        share = batch["label_weight"][i]
        target = share * np.eye(5)[batch["label"][i]] + (1 - share) * np.eye(5)[batch["label_other"][i]]
        expected -= ((0.9 * target + 0.1 / 5) * log_p[i]).sum()
    assert weight == 13
    np.testing.assert_allclose(total, expected, rtol=1e-5)


@pytest.mark.parametrize("kind", ["pmap", "jit"])
@pytest.mark.parametrize(("rows", "accumulate"), [(8, 1), (16, 1), (16, 2)])  # pairs of two devices, and of one
def test_pairs_are_mixed_before_the_batch_is_divided(kind, rows, accumulate):
    rng, image_format = np.random.default_rng(0), ImageFormat((32, 32), 1)
    weights, boxes = draw_mix(rng, rows // 2, (32, 32), Augmentation(mixup=1.0, cutmix=1.0))
    batch = {
        "image": rng.integers(0, 256, (rows, 32, 32, 1), np.uint8),
        "label": rng.integers(5, size=rows).astype(np.int32),
        "mask": np.arange(rows) != 3,
        "mix_weight": weights.repeat(2),
        "mix_box": boxes.repeat(2, axis=0),
    }
    _, start, train_step = setup("mlp")
    whole, prepared = train_step(start, prepare(batch, image_format))
    step = dataclasses.replace(train_step, accumulate=accumulate, prepare=lambda batch: prepare(batch, image_format))
    devices = devices_lib.make(kind)
    shared, metrics_of_parts = devices.train_step(step)(devices.place(start), batch)
    for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(shared.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert metrics.means(prepared) == pytest.approx(metrics.means(metrics_of_parts), rel=1e-4)
