import jax
import numpy as np
import optax
import pytest

from attnjax.models.mlp import MLP
from attnjax.objectives.classification import ClassificationObjective
from attnjax.runs.compilation import CompiledStep
from attnjax.training import devices as devices_lib
from attnjax.training import state as state_lib
from attnjax.training.step import TrainStep

SHAPE = (4, 4, 1)


def batch(rows):
    rng = np.random.default_rng(rows)
    image = rng.normal(size=(rows, *SHAPE)).astype("f")
    return {"image": image, "label": rng.integers(3, size=rows).astype(np.int32), "mask": np.ones(rows, bool)}


@pytest.fixture(params=[dict(kind="pmap"), dict(kind="jit", fsdp=2)], ids=str)
def training(request):
    devices = devices_lib.make(**request.param)
    objective, optimizer = ClassificationObjective(MLP(num_classes=3, widths=(8,))), optax.sgd(0.1)
    step = TrainStep(objective, optimizer, lambda step: 0.1)
    example = {"image": jax.ShapeDtypeStruct((1, *SHAPE), np.float32)}

    def create():
        return devices.create(lambda: state_lib.create(objective, optimizer, example, 0, ema=False))

    return devices, step, create


def test_steps_of_all_shapes_equal_those_compiled_on_demand(training):
    devices, step, create = training
    ahead, on_demand = CompiledStep(devices, step, create(), [batch(16), batch(8)]), devices.train_step(step)
    states = [create(), create()]
    for rows in (8, 16, 24):  # the last was not compiled ahead
        states = [take(state, batch(rows))[0] for take, state in zip((ahead, on_demand), states, strict=True)]
    jax.tree.map(np.testing.assert_array_equal, *states)


def test_operations_are_those_of_one_device(training):
    """Three products per layer, but none for the gradient of the images; two operations per multiply-add."""
    devices, step, create = training
    compiled = CompiledStep(devices, step, create(), [batch(16)])
    assert compiled.operations(batch(16)) == 2 * 16 * (2 * 16 * 8 + 3 * 8 * 3) // 8


def test_shapes_are_compiled_before_the_first_step(training, monkeypatch):
    devices, step, create = training
    compiled = CompiledStep(devices, step, create(), [batch(16), batch(8)])
    monkeypatch.setattr(devices_lib.Devices, "trace", lambda *_: pytest.fail("compiled during the training"))
    state = create()
    for rows in (8, 16):
        state, _ = compiled(state, batch(rows))
