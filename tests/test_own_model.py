"""A model outside of the package, as the README shows it: trained by pmap, on a mesh with FSDP, and by a sweep."""

import re

import jax
import pytest

from attnjax.runs.folder import open_run

MODEL = """
import flax.linen as nn

from attnjax.nn.dropout import Dropout


class Linear(nn.Module):
    num_classes: int  # from the data
    hidden: int = 16
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x, *, train: bool = False):
        x = nn.relu(nn.Dense(self.hidden, dtype=self.dtype)(x.reshape(x.shape[0], -1)))
        x = Dropout(0.1)(x, train=train)
        return nn.Dense(self.num_classes, dtype=self.dtype)(x)
"""
CONFIG = """
from pathlib import Path

from attnjax import config as config_lib
from attnjax import models, sweeps


def get_config():
    config = config_lib.classification()
    config.model = models.fields(f"{Path(__file__).parent}/linear.py:Linear", hidden=32)
    config.data.source, config.data.train, config.data.validation = "tfds:digits", "train[:90%]", "train[90%:]"
    config.data.image_size, config.data.channels = (8, 8), 1
    config.steps, config.log_every, config.eval_every, config.batch_size, config.eval_batch_size = 30, 10, 30, 64, 144
    config.optimizer.learning_rate = 1e-2
    return config


def sweep():
    return sweeps.values("model.hidden", [8, 32])
"""


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mine")
    (folder / "linear.py").write_text(MODEL)
    (folder / "config.py").write_text(CONFIG)
    return folder / "config.py"


@pytest.mark.parametrize("parallel", [[], ["--config.parallel.kind=jit", "--config.parallel.fsdp=2"]], ids=str)
def test_it_trains_and_is_evaluated(parallel, config_file, entry, tmp_path):
    assert jax.device_count() == 8
    code, out, err = entry("train", "--config", config_file, "--workdir", tmp_path, *parallel)
    assert code == 0 and ("fsdp 2" if parallel else "pmap, data parallel over 8") in out, err
    run = open_run(tmp_path)
    assert run.model.hidden == 32 and run.params["Dense_0"]["kernel"].shape == (64, 32)
    code, out, err = entry("evaluate", "--workdir", tmp_path)
    assert code == 0 and float(out.split("accuracy ")[1].split()[0]) > 0.5, err


def test_the_general_rule_shards_its_largest_axis(config_file, entry, tmp_path):
    mesh = ["--config.parallel.kind=jit", "--config.parallel.fsdp=8"]
    code, out, err = entry("train", "--config", config_file, "--workdir", tmp_path, "--dry_run", *mesh)
    assert code == 0, err
    held = (64 * 32 + 32 * 10) // 8 + 32 + 10  # kernels are sharded, biases replicated
    state = int(re.search(r"state per device.*\(([\d,]+) bytes\)", out)[1].replace(",", ""))
    assert 0 < state - 4 * 3 * held <= 32  # parameters and two moments; and the step, its counters and the key


def test_a_sweep_of_it(config_file, entry, tmp_path):
    code, out, err = entry("sweep", "--config", config_file, "--workdir", tmp_path / "sweep", "--jobs", 2, "--evaluate")
    assert code == 0 and out.count("finished") == 2, err
    assert {path.name for path in (tmp_path / "sweep").glob("hidden=*")} == {"hidden=8", "hidden=32"}
