"""A training of seconds on the digits, as it would be run in this process."""

import json

import jax
import numpy as np
import pytest

from attnjax import config as config_lib
from attnjax import models
from attnjax.runs import folder as run
from attnjax.runs import loop


def digits_config(**changes):
    config = config_lib.classification()
    config.model = models.fields("mlp", widths=(8,), dropout=0.1)
    config.data.source, config.data.train, config.data.validation = "tfds:digits", "train[:90%]", "train[90%:]"
    config.data.image_size, config.data.channels = (8, 8), 1
    config.data.augment.crop, config.data.augment.pad, config.data.augment.mixup = "pad", 1, 0.5
    config.batch_size, config.eval_batch_size = 32, 144
    config.steps, config.log_every, config.eval_every, config.save_every = 12, 5, 6, 2
    config.keep_checkpoints = 2
    for name, value in changes.items():
        config.optimizer.update({name: value}) if name in config.optimizer else config.update({name: value})
    return config


@pytest.fixture
def digits(quick):
    """Returns digits(workdir, **fields): trains, with fields of the config or of its optimizer changed."""

    def train(workdir, accept_changes=False, **changes):
        loop.train(digits_config(**changes), workdir, accept_changes=accept_changes)
        return workdir

    return train


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, quick):
    """The run folder of that training, never stopped."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    loop.train(digits_config(), workdir)
    return workdir


@pytest.fixture
def assert_same_run(rows):
    """Compares the rows but for speeds, and the final weights bit for bit; there is nothing left but what belongs."""

    def check(one, other):
        for split in ("train", "validation"):
            assert json.dumps(rows(one, split)) == json.dumps(rows(other, split))
        a, b = run.open_run(one, "latest"), run.open_run(other, "latest")
        assert a.step == b.step
        assert jax.tree.all(jax.tree.map(np.array_equal, a.params, b.params))

    return check
