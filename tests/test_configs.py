"""Every config builds and takes a step, on random images of its own shape."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import config as config_lib
from attnjax.data.images import Augmentation
from attnjax.training import run, state
from attnjax.training.optimizer import make_optimizer, make_schedule
from attnjax.training.step import make_train_step

FOLDER = Path(__file__).parent.parent / "configs"
# Of a Transformer's blocks one shows what all do; the rest would only take time to compile.
SMALLER = {"vit": {"depth": 1}, "resnet": {"blocks": (1, 1, 1)}}


@pytest.mark.parametrize("name", sorted(path.name for path in FOLDER.glob("*.py")))
def test_config_takes_a_step(name):
    config = config_lib.load(str(FOLDER / name))
    assert config.data.source and "--config configs/" + name in (FOLDER / name).read_text()
    Augmentation(**config.data.augment)
    config.model.update(SMALLER.get(config.model.name, {}))
    task = run.build_task(config, num_classes=10)
    schedule = make_schedule(config.optimizer, config.steps or 10**6)
    optimizer = make_optimizer(config.optimizer, schedule)
    start = state.create(task, optimizer, run.image_shape(config), config.seed, ema=config.ema_decay > 0)
    image = np.random.default_rng(0).normal(size=(2, *run.image_shape(config)[1:])).astype(np.float32)
    batch = {"image": image, "label": np.array([1, 2], np.int32), "mask": np.ones(2, bool)}
    after, metrics = jax.jit(make_train_step(task, optimizer, schedule, config.ema_decay))(start, batch)
    assert after.step == 1 and np.isfinite(metrics["loss"][0])
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(after.params))
