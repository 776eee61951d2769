"""The last checkpoints of a run and their mean."""

import jax
import numpy as np
import pytest

from attnjax import config as config_lib
from attnjax import models
from attnjax.errors import UserError
from attnjax.runs import folder
from attnjax.runs.checkpoint import Checkpoints
from attnjax.runs.experiment import Experiment


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
    folder.write_description(workdir, experiment)
    shapes, states = experiment.state_shapes(), {}
    checkpoints = Checkpoints(workdir, "accuracy", keep=keep)
    for number, accuracy in enumerate(accuracies, 1):
        rng = np.random.default_rng(number)
        state = jax.tree.map(lambda x, rng=rng: rng.normal(size=x.shape).astype(x.dtype), shapes)
        states[10 * number] = state.replace(step=np.int32(10 * number))
        checkpoints.save(10 * number, states[10 * number], NoData(), {"accuracy": accuracy})
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
    checkpoints = Checkpoints(tmp_path, "accuracy", read_only=True)
    restored = checkpoints.restore(10, states[10])
    checkpoints.close()
    assert not any(leaf.committed for leaf in jax.tree.leaves(restored))
    jax.tree.map(np.testing.assert_array_equal, restored, states[10])


def test_nothing_to_average(tmp_path):
    make_run(tmp_path, keep=2, accuracies=[])
    with pytest.raises(UserError, match="holds no checkpoint"):
        folder.open_run(tmp_path, "average")
    with pytest.raises(UserError, match="keep_checkpoints=0: it should be 1 or more"):
        Checkpoints(tmp_path, "accuracy", keep=0)
