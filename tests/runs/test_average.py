"""Choosing checkpoints: the best, the mean of the last, and what happens while a training replaces them."""

import math
import os
import shutil
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest

from attnjax import config as config_lib
from attnjax import models
from attnjax.errors import UserError
from attnjax.runs import checksums, folder
from attnjax.runs.checkpoint import Checkpoints
from attnjax.runs.description import write_description
from attnjax.runs.experiment import Experiment
from attnjax.runs.reader import METRICS, CheckpointReader


class NoData:
    """An iterator without anything to remember."""

    def get_state(self):
        return {}


def make_run(workdir, *, keep, accuracies, ema=0.0):
    """Writes a run folder with a checkpoint of other random weights every 10 steps; returns the states by step."""
    config = config_lib.classification()
    config.model = models.fields("mlp", widths=(4,))
    config.data.image_size, config.data.channels = (2, 2), 1
    config.keep_checkpoints, config.ema_decay = keep, ema
    experiment = Experiment.classifier(config, ("a", "b"))
    record = write_description(workdir, experiment)
    shapes, states = experiment.state_shapes(), {}
    checkpoints = Checkpoints(workdir, "accuracy", keep=keep)
    for number, accuracy in enumerate(accuracies, 1):
        rng = np.random.default_rng(number)
        state = jax.tree.map(lambda x, rng=rng: rng.normal(size=x.shape).astype(x.dtype), shapes)
        states[10 * number] = state.replace(step=np.int32(10 * number))
        checkpoints.save(10 * number, states[10 * number], NoData(), {"accuracy": accuracy}, record)
    checkpoints.close()
    return states


def assert_mean(opened, trees):
    expected = jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *trees)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), opened.params, expected)


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_the_average_is_the_mean_of_the_last(tmp_path, ema):
    """The best, which is kept too, is older and not in it."""
    states = make_run(tmp_path, keep=3, accuracies=[0.9, 0.1, 0.2, 0.3, 0.4, 0.5], ema=ema)
    kept = sorted(int(path.name) for path in (tmp_path / "checkpoints").glob("[0-9]*"))
    assert kept == [10, 40, 50, 60]
    average = folder.open_run(tmp_path, "average")
    assert average.step == 60
    assert_mean(average, [states[step].ema if ema else states[step].params for step in (40, 50, 60)])
    assert folder.open_run(tmp_path).step == 10
    assert_mean(folder.open_run(tmp_path, "40"), [states[40].eval_params])


def test_the_average_of_fewer_than_asked_for_is_of_all(tmp_path):
    states = make_run(tmp_path, keep=5, accuracies=[0.1, 0.2])
    assert_mean(folder.open_run(tmp_path, "average"), [states[10].params, states[20].params])


def test_the_average_of_one_is_the_latest(tmp_path):
    states = make_run(tmp_path, keep=1, accuracies=[0.2, 0.1])
    average = folder.open_run(tmp_path, "average")
    assert average.step == 20
    assert_mean(average, [states[20].params])


def test_restored_weights_are_tied_to_no_device(tmp_path):
    """As those of a new run are: else what is compiled for one is not for the other."""
    states = make_run(tmp_path, keep=1, accuracies=[0.1])
    restored = CheckpointReader(tmp_path, "accuracy").restore(10, states[10])
    assert not any(leaf.committed for leaf in jax.tree.leaves(restored))
    jax.tree.map(np.testing.assert_array_equal, restored, states[10])


def test_nothing_to_average(tmp_path):
    make_run(tmp_path, keep=2, accuracies=[])
    with pytest.raises(UserError, match="holds no checkpoint"):
        folder.open_run(tmp_path, "average")
    with pytest.raises(UserError, match="keep_checkpoints=0: it should be 1 or more"):
        Checkpoints(tmp_path, "accuracy", keep=0)


def kept(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").glob("[0-9]*"))


def test_a_validation_that_is_not_finite_is_not_the_best(tmp_path):
    make_run(tmp_path, keep=1, accuracies=[0.5, 1.0, math.nan, math.inf, 0.6])
    assert kept(tmp_path) == [20, 50]
    assert folder.open_run(tmp_path).step == 20
    make_run(tmp_path / "none", keep=1, accuracies=[math.nan, math.nan])
    assert folder.open_run(tmp_path / "none").step == 20


# While a training replaces them


def replaced_while_read(monkeypatch, times):
    """Deletes the step that is chosen, as a training with one checkpoint does when it has saved the next one."""
    choose, left = CheckpointReader.choose, [times]

    def chosen(reader, which):
        step = choose(reader, which)
        if left[0]:
            left[0] -= 1
            reader.path(step).rename(reader.path(step + 1))
            sums = reader.path(step + 1) / checksums.FILE
            sums.write_text(sums.read_text().replace(f'"step": {step},', f'"step": {step + 1},'))
        return step

    monkeypatch.setattr(CheckpointReader, "choose", chosen)


def test_a_checkpoint_that_is_replaced_is_chosen_again(tmp_path, monkeypatch):
    states = make_run(tmp_path, keep=1, accuracies=[0.2])
    replaced_while_read(monkeypatch, 3)
    opened = folder.open_run(tmp_path)
    assert opened.step == 13
    assert_mean(opened, [states[10].params])


def test_checkpoints_that_are_always_replaced(tmp_path, monkeypatch):
    make_run(tmp_path, keep=1, accuracies=[0.2])
    replaced_while_read(monkeypatch, 1000)
    with pytest.raises(UserError, match=r"was deleted while it was read: try again, or let the run keep more"):
        folder.open_run(tmp_path)


def test_damaged_metrics_concern_only_the_choice_of_the_best(tmp_path):
    make_run(tmp_path, keep=1, accuracies=[0.5, 0.2])
    (tmp_path / "checkpoints" / "10" / METRICS).write_text("{")
    assert folder.open_run(tmp_path, "latest").step == 20
    with pytest.raises(UserError, match=r"checkpoint 10 in .* is damaged: metrics/metrics has 1 bytes"):
        folder.open_run(tmp_path)


def test_damage_on_another_disk_is_set_aside_there(tmp_path):
    disk = Path(tempfile.mkdtemp(dir="/dev/shm")) if os.path.isdir("/dev/shm") else tmp_path
    if disk.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("/dev/shm is not a disk of its own")
    try:
        make_run(tmp_path, keep=2, accuracies=[0.1, 0.2])
        shutil.copytree(tmp_path / "checkpoints", disk, dirs_exist_ok=True)
        shutil.rmtree(tmp_path / "checkpoints")
        (tmp_path / "checkpoints").symlink_to(disk)
        (disk / "20" / checksums.FILE).unlink()
        checkpoints = Checkpoints(tmp_path, "accuracy")
        checkpoints.close()
        assert checkpoints.latest == 10
        assert "moved to" in checkpoints.damage[0] and (disk / "damaged" / "20").is_dir()
    finally:
        shutil.rmtree(disk)
