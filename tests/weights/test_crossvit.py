"""CrossViT checkpoints: IBM's and timm's names are read as the same variables; both position tables are resized."""

import re

import numpy as np
import pytest
import safetensors.numpy
from flax.traverse_util import flatten_dict

from attnjax import config as config_lib
from attnjax import models
from attnjax.errors import UserError
from attnjax.nn.positions import resize_positions
from attnjax.runs import folder
from attnjax.runs.experiment import Experiment
from attnjax.runs.initialise import initialise
from attnjax.weights import crossvit, published
from attnjax.weights.naming import to_published
from tests.states import random_state

# Branches of 4x4 and 2x2 patches.
SMALL = dict(
    patch_sizes=(4, 4), image_scales=(1.0, 0.5), widths=(4, 8), stages=2, depths=(1, 2), num_heads=2, mlp_ratio=2.0
)
CLASSES = ("cat", "dog", "owl")
TABLES = [f"params/branch{i}/positions/embedding" for i in (1, 2)]


def make_config(image_size=(16, 16), **fields):
    config = config_lib.classification()
    config.model = models.fields("crossvit", **(SMALL | fields))
    config.data.image_size = image_size
    return config


def read(path, config):
    return published.read(path, config.model, (*config.data.image_size, config.data.channels))


def named(config):
    """Returns arrays as in timm's files, and their variables."""
    rng = np.random.default_rng(0)
    model = models.build(config.model, num_classes=len(CLASSES))
    shapes = published.variable_shapes(model, (1, *config.data.image_size, config.data.channels))
    variables = {path: rng.normal(size=shape).astype(np.float32) for path, shape in shapes.items()}
    return fuse_qkv(to_published(variables, crossvit.FORMATS[0], model)), variables


def fuse_qkv(arrays):
    """Undoes split_qkv."""
    fused = {name: array for name, array in arrays.items() if not re.search(r"attn\.(query|key|value)", name)}
    for name in arrays:
        if "attn.query" in name:
            parts = [arrays[name.replace("query", part)] for part in ("query", "key", "value")]
            fused[name.replace("query", "qkv")] = np.concatenate(parts)
    return fused


def ibms(arrays):
    return {re.sub(r"^(pos_embed|cls_token)_", r"\1.", name): array for name, array in arrays.items()}


@pytest.fixture
def file(tmp_path):
    """A timm file, and its variables."""
    arrays, variables = named(make_config())
    safetensors.numpy.save_file(arrays, tmp_path / "timm.safetensors")
    return tmp_path / "timm.safetensors", variables


@pytest.mark.parametrize("names", [dict, ibms])
def test_both_namings_are_read(names, tmp_path):
    arrays, variables = named(make_config())
    safetensors.numpy.save_file(names(arrays), tmp_path / "a.safetensors")
    weights = read(tmp_path / "a.safetensors", make_config())
    assert weights.num_classes == 3
    assert weights.variables.keys() == variables.keys()
    for path, array in variables.items():
        np.testing.assert_array_equal(weights.variables[path], array, err_msg=path)


def test_names_and_shapes_are_those_of_the_published_files():
    shapes = {name: array.shape for name, array in named(make_config())[0].items()}
    expected = {
        "pos_embed_0": (1, 17, 4),
        "pos_embed_1": (1, 5, 8),
        "cls_token_1": (1, 1, 8),
        "patch_embed.0.proj.weight": (4, 3, 4, 4),
        "blocks.1.blocks.0.0.attn.qkv.weight": (12, 4),
        "blocks.1.blocks.1.1.mlp.fc1.bias": (16,),
        "blocks.0.projs.0.0.weight": (4,),
        "blocks.0.projs.0.2.weight": (8, 4),
        "blocks.0.fusion.0.norm1.bias": (8,),
        "blocks.0.fusion.0.attn.wq.weight": (8, 8),
        "blocks.0.fusion.0.attn.wk.bias": (8,),
        "blocks.0.fusion.1.attn.proj.weight": (4, 4),
        "blocks.1.revert_projs.0.0.weight": (8,),
        "blocks.1.revert_projs.0.2.weight": (4, 8),
        "norm.1.weight": (8,),
        "head.0.weight": (3, 4),
        "head.1.bias": (3,),
    }
    assert expected.items() <= shapes.items()
    assert {name.rsplit(".", 1)[-1] for name in shapes if "_" not in name} == {"weight", "bias"}
    in_stage = 3 * 12 + 2 * (4 + 2 + 8 + 4)
    assert len(shapes) == 2 * (2 + 2 + 2 + 2) + 2 * in_stage


def load(path, config, classes=CLASSES):
    """Returns the parameters (flat) and the report of a new run from old weights."""
    config.init_from = str(path)
    state, report = initialise(Experiment.classifier(config, classes).state_shapes(), config)
    return flatten_dict({"params": state.params}, sep="/"), report


def test_another_image_size_resizes_both_tables(file):
    path, variables = file
    params, report = load(path, make_config((24, 16)))
    assert report == [
        "positions resized 4x4 -> 6x4 (bicubic_antialias)",
        "positions resized 2x2 -> 3x2 (bicubic_antialias)",
    ]
    for table, old, new in zip(TABLES, [(4, 4), (2, 2)], [(6, 4), (3, 2)], strict=True):
        np.testing.assert_array_equal(params[table], resize_positions(variables[table], old, new))


def test_other_classes_replace_both_heads(file):
    path, variables = file
    config = make_config()
    config.init_from = str(path)
    fresh = random_state(Experiment.classifier(config, tuple("abcde")))
    state, report = initialise(fresh, config)
    assert report == ["head replaced: 3 -> 5 classes"]
    old, new = (flatten_dict({"params": tree.params}, sep="/") for tree in (fresh, state))
    heads = {f"params/head{i}/{leaf}" for i in (1, 2) for leaf in ("kernel", "bias")}
    for name, array in new.items():
        np.testing.assert_array_equal(array, old[name] if name in heads else variables[name], err_msg=name)
    assert heads <= new.keys()


def test_a_file_without_heads(file, tmp_path):
    arrays = {name: array for name, array in named(make_config())[0].items() if not name.startswith("head")}
    safetensors.numpy.save_file(arrays, tmp_path / "bare.safetensors")
    weights = read(tmp_path / "bare.safetensors", make_config())
    assert weights.num_classes == 0
    assert weights.variables.keys() == {path for path in file[1] if not path.startswith("params/head")}


def test_a_run_initialises_another_image_size_and_dropout_but_not_another_model(tmp_path):
    one_stage = dict(stages=1, depths=(1, 1))
    config = make_config((16, 8), **one_stage)
    experiment = Experiment.classifier(config, CLASSES)
    old = random_state(experiment)
    folder.save_weights(tmp_path / "run", experiment, old)
    _, report = load(tmp_path / "run", make_config((16, 16), drop_path=0.1, kernel_std=0.0, **one_stage))
    assert report == [
        "positions resized 4x2 -> 4x4 (bicubic_antialias)",
        "positions resized 2x1 -> 2x2 (bicubic_antialias)",
    ]
    with pytest.raises(UserError, match=r"is a run of another model \(model.depths: \(1, 1\) -> \(1, 2\)\)"):
        load(tmp_path / "run", make_config((16, 8), stages=1))


def refused(path, config):
    with pytest.raises(UserError) as error:
        read(path, config)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_does_not_fit_is_listed(file, tmp_path):
    path, _ = file
    assert "84 missing: blocks.2." in refused(path, make_config(stages=3))
    assert "32 unexpected: blocks.0.blocks.1.1." in refused(path, make_config(depths=(1, 1)))
    assert "of the wrong shape: " in refused(path, make_config(widths=(4, 6)))
    # The dagger variants embed patches with three convolutions.
    dagger = {name.replace("embed.0.proj.", "embed.0.proj.0."): x for name, x in named(make_config())[0].items()}
    safetensors.numpy.save_file(dagger, tmp_path / "dagger.safetensors")
    said = refused(tmp_path / "dagger.safetensors", make_config())
    assert (
        "2 missing: patch_embed.0.proj.bias, patch_embed.0.proj.weight; 2 unexpected: patch_embed.0.proj.0.bias" in said
    )
