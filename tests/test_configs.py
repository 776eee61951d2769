"""Every config builds and takes a step: on random images of its own shape, or on the embedded translations."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import config as config_lib
from attnjax.data.builders import symbols
from attnjax.data.images import Augmentation
from attnjax.training import run
from attnjax.training.optimizer import make_optimizer, make_schedule
from attnjax.training.step import make_train_step
from attnjax.workloads.classification import ClassificationWorkload
from attnjax.workloads.translation import TranslationWorkload

FOLDER = Path(__file__).parent.parent / "configs"
# Of a Transformer's blocks one shows what all do; the rest would only take time to compile.
SMALLER = {
    "vit": {"depth": 1},
    "swin": {"depths": (1, 1), "num_heads": (1, 2)},
    "crossvit": {"stages": 1, "depths": (1, 1)},
    "resnet": {"blocks": (1, 1, 1)},
    "transformer": {"encoder_depth": 1, "decoder_depth": 1},
}
# The arguments of those whose models differ by them; of the others, the default.
ARGUMENTS = {"reverse.py": [f":model={name}" for name in ("rnn", "lstm", "lstm_attention", "transformer")]}
SPECS = [path.name + argument for path in sorted(FOLDER.glob("*.py")) for argument in ARGUMENTS.get(path.name, [""])]


def classification(config, workdir):
    del workdir
    Augmentation(**config.data.augment)
    workload = ClassificationWorkload(config, tuple("0123456789"))
    image = np.random.default_rng(0).normal(size=(2, *workload.example["image"].shape[1:])).astype(np.float32)
    return workload, {"image": image, "label": np.array([1, 2], np.int32), "mask": np.ones(2, bool)}


def translation(config, workdir):
    data = config.data
    data.train, data.validation = "train[:300]", ""
    if data.source.startswith("tfds:symbols/"):
        data.data_dir = str(workdir / "tfds")  # beside no others, as there are few of them
    else:
        assert set(data.languages) <= {"en", "de", "fr"}
        data.source, data.data_dir, data.vocabulary.size = "tfds:numwords", "", 150
    data.batching.max_tokens = 8 * data.batching.max_length
    workload = TranslationWorkload.for_training(config, workdir)
    batches = workload.batches()
    batch = next(batches)
    batches.close()
    return workload, batch


@pytest.mark.parametrize("spec", SPECS)
def test_config_takes_a_step(spec, tmp_path, monkeypatch):
    monkeypatch.setattr(symbols, "SIZES", {"train": 300, "validation": 10, "test": 10})
    config = config_lib.load(str(FOLDER / spec))
    name = spec.partition(":")[0]
    assert config.data.source and "--config configs/" + name in (FOLDER / name).read_text()
    config.model.update(SMALLER.get(config.model.name, {}))
    workload, batch = {"classification": classification, "translation": translation}[config.task](config, tmp_path)
    schedule = make_schedule(config.optimizer, config.steps or 10**6)
    optimizer = make_optimizer(config.optimizer, schedule)
    start = run.create_state(workload, optimizer)
    after, metrics = jax.jit(make_train_step(workload.task, optimizer, schedule, config.ema_decay))(start, batch)
    assert after.step == 1 and np.isfinite(metrics["loss"][0])
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(after.params))
