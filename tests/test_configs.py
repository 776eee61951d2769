"""Every config builds and takes a step: on random images, on the embedded translations, or on a few made captions."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from num2words import num2words
from PIL import Image

from attnjax import config as config_lib
from attnjax.data.builders import symbols
from attnjax.data.images import Augmentation
from attnjax.sweeps import trials
from attnjax.training import run
from attnjax.training.optimizer import make_optimizer, make_schedule
from attnjax.training.step import make_train_step
from attnjax.workloads.captioning import CaptioningWorkload
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


def captioning(config, workdir):
    if config.model.name == "captioner":
        encoder, text = config.model.encoder, config.model.text
        encoder.update(SMALLER.get(encoder.name, {}) if encoder.name != "resnet" else {})
        text.update(encoder_depth=min(1, text.encoder_depth), decoder_depth=1)
    data, count = config.data, 40
    for number in range(count):
        Image.new("RGB", (80, 60 + number), (number, 100, 200)).save(workdir / f"{number}.png")
    if data.image_lines:
        assert data.images and set(data.languages) <= {"en", "de", "fr"}
        for language in data.languages:
            lines = [num2words(number, lang=language) for number in range(count)]
            (workdir / f"train.{language}").write_text("\n".join(lines) + "\n")
        (workdir / "lines.tsv").write_text("".join(f"train\t{number}\t{number}.png\n" for number in range(count)))
        data.source, data.images, data.image_lines = f"text:{workdir}", str(workdir), str(workdir / "lines.tsv")
    else:
        rows = [f"{number}.png\t{num2words(number + added)}\n" for number in range(count) for added in (0, 40)]
        (workdir / "train.tsv").write_text("".join(rows))
        data.source = f"captions:{workdir}"
    data.train, data.validation = "train", ""
    data.vocabulary.size, data.batching.max_tokens = 50, 8 * data.batching.max_length
    workload = CaptioningWorkload.for_training(config, workdir)
    batches = workload.batches()
    batch = next(batches)
    batches.close()
    return workload, batch


TASKS = {"classification": classification, "translation": translation, "captioning": captioning}


# Of these captioners only the shapes: to compile all of them would take a minute.
TRACED = [f"flickr8k_captioner.py:encoder={encoder},gated=True" for encoder in ("swin", "resnet")]
TRACED += [f"multi30k_guided.py:inputs={inputs}" for inputs in ("text", "concatenated")]


def prepare(config, workdir):
    """Returns a workload of a config with a smaller model, and a batch."""
    config.model.update(SMALLER.get(config.model.name, {}))
    return TASKS[config.task](config, workdir)


def make_step(workload):
    """Returns a train step, and the function that makes the state it starts from."""
    config = workload.config
    schedule = make_schedule(config.optimizer, config.steps or 10**6)
    optimizer = make_optimizer(config.optimizer, schedule)
    step = make_train_step(workload.task, optimizer, schedule, config.ema_decay)
    return step, lambda: run.create_state(workload, optimizer)


@pytest.mark.parametrize("spec", SPECS)
def test_config_takes_a_step(spec, tmp_path, monkeypatch):
    monkeypatch.setattr(symbols, "SIZES", {"train": 300, "validation": 10, "test": 10})
    name = spec.partition(":")[0]
    config = config_lib.load(str(FOLDER / spec))
    assert config.data.source
    assert "--config configs/" + name in (FOLDER / name).read_text()
    workload, batch = prepare(config, tmp_path)
    step, start = make_step(workload)
    after, metrics = jax.jit(step)(start(), batch)
    assert after.step == 1 and np.isfinite(metrics["loss"][0])
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(after.params))


def assert_fits_together(workload, batch):
    step, start = make_step(workload)
    state = jax.eval_shape(start)
    after, metrics = jax.eval_shape(step, state, batch)
    assert jax.tree.map(lambda x: x.shape, after) == jax.tree.map(lambda x: x.shape, state) and "loss" in metrics


@pytest.mark.parametrize("spec", TRACED)
def test_variant_of_a_config_fits_together(spec, tmp_path):
    assert_fits_together(*prepare(config_lib.load(str(FOLDER / spec)), tmp_path))


@pytest.mark.parametrize("path", sorted((FOLDER / "ablations").glob("*.py")), ids=lambda path: path.stem)
def test_every_row_of_an_ablation_fits_together(path, tmp_path):
    """All of them on the base's data, which no row changes."""
    assert "--config configs/ablations/" + path.name in path.read_text()
    sweep = trials.plan(str(path), tmp_path, given=[], evaluate="best", experiments=tmp_path)
    rows = [trial for trial in sweep.trials if trial.config.seed == 0]
    assert len(sweep.trials) == 3 * len(rows)
    assert not any(field.startswith("data.") for trial in rows for field in trial.overrides)
    workload, batch = prepare(config_lib.load(str(path)), tmp_path)
    for trial in rows:
        assert_fits_together(dataclasses.replace(workload, config=trial.config), batch)
