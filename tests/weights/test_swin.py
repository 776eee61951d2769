"""Swin checkpoints: every naming is read as the same variables; tables are resized; export to Hugging Face."""

import re

import numpy as np
import pytest
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict

from attnjax import config as config_lib
from attnjax import models
from attnjax.errors import UserError
from attnjax.nn.positions import resize_grid, resize_positions
from attnjax.runs import folder
from attnjax.runs.experiment import Experiment
from attnjax.runs.initialise import initialise
from attnjax.tasks.classification import make_image_format
from attnjax.weights import huggingface, published, swin
from attnjax.weights.naming import detect, to_published
from tests.states import random_state

SMALL = dict(patch_size=2, width=4, depths=(2, 1), num_heads=(1, 2), window=3, mlp_ratio=2.0)
CLASSES = ("cat", "dog", "owl")
TABLE = "params/stage1_block2/attention/relative_positions/embedding"
POSITIONS = "params/positions/embedding"


def make_config(image_size=(16, 16), **fields):
    config = config_lib.classification()
    config.model = models.fields("swin", **(SMALL | fields))
    config.data.image_size = image_size
    return config


def read(path, config):
    return published.read(path, config.model, (*config.data.image_size, config.data.channels))


def build(config):
    return models.build(config.model, num_classes=len(CLASSES))


def random_variables(config):
    rng = np.random.default_rng(0)
    shapes = published.variable_shapes(build(config), (1, *config.data.image_size, config.data.channels))
    return {path: rng.normal(size=shape).astype(np.float32) for path, shape in shapes.items()}


def named(fmt, config):
    """Returns arrays as in the format's files, and their variables."""
    variables = random_variables(config)
    arrays = swin.flat_tables(to_published(variables, fmt, build(config)))
    return (fuse_qkv(arrays) if fmt in (swin.MICROSOFT, swin.TIMM) else arrays), variables


def fuse_qkv(arrays):
    """Undoes split_qkv."""
    fused = {name: array for name, array in arrays.items() if not re.search(r"attn\.(query|key|value)", name)}
    for name in arrays:
        if "attn.query" in name:
            parts = [arrays[name.replace("query", part)] for part in ("query", "key", "value")]
            fused[name.replace("query", "qkv")] = np.concatenate(parts)
    return fused


BUFFERS = {
    "layers.0.blocks.1.attn_mask": np.zeros((9, 9, 9), np.float32),
    "layers.0.blocks.0.attn.relative_position_index": np.zeros((9, 9), np.int64),
    "swin.encoder.layers.0.blocks.0.attention.self.relative_position_index": np.zeros((9, 9), np.int64),
}


@pytest.mark.parametrize("fmt", swin.FORMATS, ids=lambda fmt: fmt.name)
def test_every_naming_is_read_and_buffers_are_dropped(fmt, tmp_path):
    config = make_config(position="both")
    arrays, variables = named(fmt, config)
    safetensors.numpy.save_file(arrays | BUFFERS, tmp_path / "a.safetensors")
    assert detect(arrays, swin.FORMATS, "a") is fmt
    found = read(tmp_path / "a.safetensors", config).variables
    assert found.keys() == variables.keys()
    for path, array in variables.items():
        np.testing.assert_array_equal(found[path], array, err_msg=path)


def test_names_and_shapes_are_those_of_the_published_files():
    config = make_config(position="both")
    expected = {
        "patch_embed.proj.weight": (4, 3, 2, 2),
        "patch_embed.norm.bias": (4,),
        "absolute_pos_embed": (1, 64, 4),
        "layers.0.blocks.1.norm1.weight": (4,),
        "layers.0.blocks.1.attn.qkv.weight": (12, 4),
        "layers.0.blocks.1.attn.qkv.bias": (12,),
        "layers.0.blocks.1.attn.proj.weight": (4, 4),
        "layers.1.blocks.0.attn.relative_position_bias_table": (25, 2),
        "layers.1.blocks.0.mlp.fc1.weight": (16, 8),
        "layers.0.downsample.norm.weight": (16,),
        "layers.0.downsample.reduction.weight": (8, 16),
        "norm.weight": (8,),
        "head.weight": (3, 8),
    }
    shapes = {name: array.shape for name, array in named(swin.MICROSOFT, config)[0].items()}
    assert expected.items() <= shapes.items()
    assert len(shapes) == 5 + 3 * 13 + 3 + 2 + 2
    timm = named(swin.TIMM, config)[0]
    assert timm["layers.1.downsample.reduction.weight"].shape == (8, 16) and timm["head.fc.bias"].shape == (3,)
    hub = named(swin.HUGGINGFACE, config)[0]
    block = "swin.encoder.layers.0.blocks.1.attention.self."
    assert hub[f"{block}relative_position_bias_table"].shape == (25, 1) and hub[f"{block}query.weight"].shape == (4, 4)
    assert hub["swin.encoder.layers.0.downsample.reduction.weight"].shape == (8, 16)


def test_bare_hugging_face_model_has_no_head(tmp_path):
    arrays, variables = named(swin.HUGGINGFACE, make_config())
    bare = {name.removeprefix("swin."): array for name, array in arrays.items() if "classifier" not in name}
    safetensors.numpy.save_file(bare, tmp_path / "a.safetensors")
    weights = read(tmp_path / "a.safetensors", make_config())
    assert weights.num_classes == 0
    assert weights.variables.keys() == {path for path in variables if "/head/" not in path}


def load(path, config):
    """Returns the parameters (flat) and the report of a new run from old weights."""
    config.init_from = str(path)
    state, report = initialise(Experiment.classifier(config, CLASSES).state_shapes(), config)
    return flatten_dict({"params": state.params}, sep="/"), report


def test_another_window_and_image_size_resize_the_tables(tmp_path):
    arrays, variables = named(swin.MICROSOFT, make_config(position="both"))
    safetensors.numpy.save_file(arrays, tmp_path / "a.safetensors")
    wide = make_config((24, 19), window=5, position="both", shift_rule="shorter_side")
    params, report = load(tmp_path / "a.safetensors", wide)
    # One line covers both stages; the second has a 6x5 map.
    assert report == [
        "positions resized 8x8 -> 12x10 (bicubic)",
        "relative positions resized 5x5 -> 9x9 (bicubic)",
    ]
    np.testing.assert_array_equal(params[TABLE], resize_grid(variables[TABLE], (9, 9), "bicubic"))
    absolute = resize_positions(variables[POSITIONS], (8, 8), (12, 10), "bicubic")
    np.testing.assert_array_equal(params[POSITIONS], absolute)


def test_tables_shrink_with_the_window_where_the_map_is_smaller(tmp_path):
    arrays, _ = named(swin.TIMM, make_config())
    safetensors.numpy.save_file(arrays, tmp_path / "a.safetensors")
    params, report = load(tmp_path / "a.safetensors", make_config((8, 5)))  # maps of 4x3 and 2x2
    assert report == ["relative positions resized 5x5 -> 3x3 (bicubic)"]
    assert params["params/stage2_block1/attention/relative_positions/embedding"].shape == (3, 3, 2)


def test_a_run_initialises_another_window_but_not_another_model(tmp_path):
    config = make_config()
    experiment = Experiment.classifier(config, CLASSES)
    old = random_state(experiment)
    folder.save_weights(tmp_path / "run", experiment, old)
    params, report = load(tmp_path / "run", make_config(window=4, shift_by="padding", drop_path=0.1))
    assert report == ["relative positions resized 5x5 -> 7x7 (bicubic)"]
    table = flatten_dict({"params": old.params}, sep="/")[TABLE]
    np.testing.assert_array_equal(params[TABLE], resize_grid(table, (7, 7), "bicubic"))
    with pytest.raises(UserError, match=r"is a run of another model \(model.shift: True -> False\)"):
        load(tmp_path / "run", make_config(shift=False))


def refused(path, config):
    with pytest.raises(UserError) as error:
        read(path, config)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_does_not_fit_is_listed(tmp_path):
    arrays, _ = named(swin.MICROSOFT, make_config())
    safetensors.numpy.save_file(arrays, tmp_path / "a.safetensors")
    path = tmp_path / "a.safetensors"
    assert "17 missing: layers.0.blocks.2." in refused(path, make_config(depths=(3, 1)))
    assert "1 missing: absolute_pos_embed" in refused(path, make_config(position="both"))
    assert "3 unexpected: layers.0.blocks.0.attn.relative_position_bias_table" in refused(
        path, make_config(position="none")
    )
    assert "of the wrong shape: " in refused(path, make_config(mlp_ratio=4.0))
    arrays["layers.0.blocks.0.attn.relative_position_bias_table"] = np.zeros((15, 1), np.float32)
    safetensors.numpy.save_file(arrays, path)
    assert "has 15 rows, which are not of this model's 5x5, nor a square" in refused(path, make_config())


def test_a_table_of_a_window_that_is_not_square(tmp_path):
    """Maps of 4x8 and 2x4 patches: timm's windows are 3x3 and 2x3, with tables of 25 and 15 rows."""
    config = make_config((8, 16))
    arrays, variables = named(swin.TIMM, config)
    assert arrays["layers.1.blocks.0.attn.relative_position_bias_table"].shape == (15, 2)
    safetensors.numpy.save_file(arrays, tmp_path / "a.safetensors")
    found = read(tmp_path / "a.safetensors", config).variables
    assert all(np.array_equal(found[path], array) for path, array in variables.items())


# Images of 12x16 pixels have maps of 6x8 and 3x4 patches, the second of which is 3, the window, along one axis alone.
@pytest.mark.parametrize(
    ("fmt", "rule", "other"),
    [
        (swin.MICROSOFT, "shorter_side", "per_axis"),
        (swin.HUGGINGFACE, "shorter_side", "per_axis"),
        (swin.TIMM, "per_axis", "shorter_side"),
    ],
    ids=lambda x: getattr(x, "name", x),
)
def test_the_rule_of_shifts_is_the_familys(fmt, rule, other, tmp_path):
    right, wrong = (make_config((12, 16), shift_rule=name) for name in (rule, other))
    arrays, _ = named(fmt, right)
    path = tmp_path / "a.safetensors"
    safetensors.numpy.save_file(arrays, path)
    assert read(path, right).model_fields == {"shift_rule": rule}
    message = f"computes with shift_rule={rule} for images of 12x16 pixels, not shift_rule={other}: set it"
    assert message in refused(path, wrong)
    read(path, make_config((16, 16), shift_rule=other))  # no map differs


def test_maps_shift_along_neither_axis_where_the_shorter_one_is_a_window(tmp_path):
    config = make_config((12, 16), shift_rule="shorter_side")
    write(tmp_path / "out", config, random_variables(config))


def write(folder, config, variables):
    params = unflatten_dict({tuple(path.split("/")[1:]): array for path, array in variables.items()})
    return huggingface.write_classifier(folder, "swin", build(config), params, CLASSES, make_image_format(config.data))


@pytest.mark.parametrize("position", ["relative", "both"])
def test_written_for_hugging_face_and_read_again(position, tmp_path):
    config = make_config(image_size=(16, 24), position=position)
    variables = random_variables(config)
    said = write(tmp_path / "out", config, variables)
    assert said == "SwinForImageClassification (no image processor crops to 16x24)"
    assert not (tmp_path / "out" / "preprocessor_config.json").exists()
    weights = read(tmp_path / "out", config)
    assert (weights.classes, weights.image_size) == (CLASSES, (16, 24))
    assert weights.variables.keys() == variables.keys()
    assert all(np.array_equal(weights.variables[path], array) for path, array in variables.items())
    assert "config.json says num_heads=[1, 2], but this model has num_heads=(2, 2)" in refused(
        tmp_path / "out", make_config(image_size=(16, 24), position=position, num_heads=(2, 2))
    )
    with pytest.raises(UserError, match=r"already holds a model\.safetensors"):
        write(tmp_path / "out", config, variables)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(position="none"), "position=none"),
        (dict(position="absolute"), "position=absolute"),
        (dict(shift=False), "shift=False"),
        (dict(window=5), "a window of 5 is larger than a feature map"),
        (dict(image_size=(12, 16)), r"a feature map that shifts along one axis only \(shift_rule=per_axis\)"),
    ],
)
def test_what_hugging_face_cannot_express_is_refused(fields, message, tmp_path):
    config = make_config(**fields)
    with pytest.raises(UserError, match=f"cannot express this model: {message}$"):
        write(tmp_path / "out", config, random_variables(config))
    assert not (tmp_path / "out").exists()
