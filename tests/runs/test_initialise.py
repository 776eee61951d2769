"""A new run from old weights: what is loaded, resized, replaced or refused."""

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from attnjax import config as config_lib
from attnjax import models
from attnjax.data.text.vocabulary import train_vocabulary
from attnjax.errors import UserError
from attnjax.nn.positions import resize_positions
from attnjax.runs import folder
from attnjax.runs.experiment import Experiment, make_devices
from attnjax.runs.initialise import initialise, load
from attnjax.tasks.captioning import CaptioningTask
from attnjax.weights.published import Weights
from tests.states import random_state


def make_shapes(config, classes):
    return Experiment.classifier(config, map(str, range(classes))).state_shapes()


def make_state(config, classes):
    """Returns a state of random arrays."""
    return random_state(Experiment.classifier(config, map(str, range(classes))))


def flat(tree):
    return {path: np.asarray(array) for path, array in flatten_dict(tree, sep="/").items()}


def start(config, classes, source, make_state=make_shapes):
    """Returns the fresh state, the initialised one, and the report; `make_shapes` suffices if nothing stays fresh."""
    config.init_from = str(source)
    fresh = make_state(config, classes)
    state, report = initialise(fresh, config)
    assert jax.tree.structure(state) == jax.tree.structure(fresh)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == jax.tree.map(lambda x: (x.shape, x.dtype), fresh)
    return fresh, state, report


@pytest.fixture
def google_file(make_config, named, tmp_path):
    """A file of three classes at 16x16 pixels, and its parameters."""
    arrays, variables = named("Google", make_config())
    np.savez(tmp_path / "a.npz", **arrays)
    return tmp_path / "a.npz", {path.removeprefix("params/"): array for path, array in variables.items()}


def test_same_model_takes_everything(make_config, google_file):
    path, expected = google_file
    _, state, report = start(make_config(), 3, path)
    assert report == []
    params = flat(state.params)
    assert params.keys() == expected.keys()
    assert all(np.array_equal(params[name], expected[name]) for name in params)


def test_other_classes_and_image_size(make_config, google_file):
    path, expected = google_file
    config = make_config(image_size=(24, 16))
    config.ema_decay = 0.9
    fresh, state, report = start(config, 5, path, make_state)
    assert state.step is fresh.step
    assert state.opt_state is fresh.opt_state
    assert report == ["positions resized 4x4 -> 6x4 (linear_align_corners)", "head replaced: 3 -> 5 classes"]
    params = flat(state.params)
    table = resize_positions(expected["positions/embedding"], (4, 4), (6, 4), "linear_align_corners")
    np.testing.assert_array_equal(params.pop("positions/embedding"), table)
    for name, array in params.items():
        kept = flat(fresh.params)[name] if name.startswith("head/") else expected[name]
        np.testing.assert_array_equal(array, kept, err_msg=name)
    averaged = flat(state.ema)  # the EMA restarts from the loaded weights
    assert all(np.array_equal(averaged[name], params[name]) for name in params)


@pytest.mark.parametrize(
    ("position", "message"),
    [
        ("learned_2d", "positions of rows resized 4 -> 6 (bicubic)"),
        ("relative", "relative positions resized 7x7 -> 11x7 (bicubic)"),
    ],
)
def test_other_positions_at_another_image_size(position, message, make_config, random_variables):
    variables = random_variables(make_config(position=position), 3)
    weights = Weights("a", variables, 3, classes=None, image_size=(16, 16), resize_rule="bicubic")
    config = make_config(position=position, image_size=(24, 16))
    fresh = make_shapes(config, 3)
    state, report = load(fresh, weights, config)
    assert report == [message]
    changed = {path for path, array in flat(state.params).items() if array.shape != variables[f"params/{path}"].shape}
    ends = "positions/rows" if position == "learned_2d" else "relative_positions/embedding"
    assert changed and all(path.endswith(ends) for path in changed)
    assert jax.tree.map(lambda x: x.shape, state) == jax.tree.map(lambda x: x.shape, fresh)


@pytest.fixture
def run_folder(make_config, random_variables, tmp_path):
    """Returns run_folder(config): a run of three classes whose EMA differs from its weights."""

    def make(config):
        config.ema_decay = 0.9
        state = make_state(config, 3)
        state = state.replace(
            ema=jax.tree.map(lambda x: x + 1, state.ema),
            model_state=jax.tree.map(lambda x: x + 2, state.model_state),
        )
        folder.save_weights(tmp_path / "run", Experiment.classifier(config, ("cat", "dog", "owl")), state)
        return tmp_path / "run", state

    return make


def test_a_captioners_encoder_starts_from_a_run(make_config, run_folder):
    """The head is left out and positions are resized; the text model stays fresh."""
    path, old = run_folder(make_config(image_size=(16, 8), depth=1))
    encoder = make_config(image_size=(16, 16), depth=1)
    config = config_lib.captioning()
    text = models.fields(
        "transformer", encoder_depth=0, decoder_depth=1, width=8, num_heads=2, mlp_dim=8, tie="decoder"
    )
    config.model = models.fields("captioner", encoder=dict(encoder.model), text=text)
    config.data.image_size, config.data.channels = encoder.data.image_size, encoder.data.channels
    config.encoder_from = str(path)
    names = ("zero", "one", "two")
    vocabulary = train_vocabulary(names, names, size=20)
    devices = make_devices(config)
    fresh = random_state(Experiment(config, devices, CaptioningTask.with_vocabulary(config, devices, vocabulary)))
    state, report = initialise(fresh, config)
    assert report == [
        f"encoder initialised from {path}",
        "positions resized 4x2 -> 4x4 (bicubic_antialias)",
        "head of 3 classes left out",
    ]
    assert jax.tree.structure(state) == jax.tree.structure(fresh)
    jax.tree.map(np.testing.assert_array_equal, state.params["text"], fresh.params["text"])
    loaded, averaged = flat(state.params["encoder"]), flat(old.ema)
    assert loaded.keys() == {name for name in averaged if not name.startswith("head/")}
    assert all(np.array_equal(loaded[name], averaged[name]) for name in loaded if "positions" not in name)
    config.model = models.fields("transformer", "tiny")
    with pytest.raises(UserError, match="no image encoder"):
        initialise(fresh, config)


def test_a_run_folder_gives_its_ema(make_config, run_folder):
    path, old = run_folder(make_config(image_size=(16, 8), depth=1))
    config = make_config(image_size=(8, 16), depth=1, dropout=0.1)  # the same number of patches
    config.optimizer.name, config.precision = "sgd", "bfloat16"
    _, state, report = start(config, 3, path)
    assert report == ["positions resized 4x2 -> 2x4 (bicubic_antialias)"]
    params, averaged = flat(state.params), flat(old.ema)
    assert all(np.array_equal(params[name], averaged[name]) for name in params if "positions" not in name)


def test_a_run_folder_gives_batch_statistics(run_folder):
    config = config_lib.classification()
    config.model = models.fields("resnet", blocks=(1, 1), features=(4, 8))
    path, old = run_folder(config)
    _, state, report = start(config, 3, path)
    assert report == []
    statistics, expected = flat(state.model_state), flat(old.model_state)
    assert all(np.array_equal(statistics[name], expected[name]) for name in expected)


def test_run_of_another_model_is_refused(make_config, run_folder):
    path, _ = run_folder(make_config(depth=1))
    with pytest.raises(UserError, match=r"is a run of another model \(model.depth: 1 -> 2; model.width: 8 -> 16\)"):
        start(make_config(width=16), 3, path)
    config = make_config(depth=1)
    config.data.channels = 1
    with pytest.raises(UserError, match=r"1 of the wrong shape: params/patch_embedding/projection/kernel"):
        start(config, 3, path)


def test_positions_that_are_not_square_need_an_image_size(make_config, named, tmp_path):
    arrays, _ = named("Google", make_config(image_size=(16, 12)))
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UserError, match="positions for 12 patches, which do not form a 3x3 grid"):
        start(make_config(), 3, tmp_path / "a.npz")


def test_missing_source(make_config, tmp_path):
    with pytest.raises(UserError, match="no weights file or folder"):
        start(make_config(), 3, tmp_path / "nothing")
