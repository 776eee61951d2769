"""The registry: fields and rows of the package's models, and models in a user's own file."""

import importlib
import json
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax.traverse_util import flatten_dict

from attnjax import models
from attnjax.errors import UserError


def test_registry_names_what_is_known():
    with pytest.raises(UserError, match="did you mean 'vit'"):
        models.fields("vti")
    with pytest.raises(UserError, match=r"unknown size 'S/18' of vit, did you mean 'S/16'"):
        models.fields("vit", "S/18")
    with pytest.raises(UserError, match="vit has no field 'hidden'"):
        models.fields("vit", hidden=3)
    with pytest.raises(UserError, match="resnet needs blocks, features, or a size"):
        models.fields("resnet")


def test_every_row_is_complete():
    for name, row in models.MODELS.items():
        assert models.lookup(name) is row and issubclass(row.module, nn.Module)
        for size in row.sizes:
            assert models.fields(name, size)["name"] == name
        if row.formats:
            assert importlib.import_module(f"attnjax.weights.{row.formats}").FORMATS
    assert {name for name, row in models.MODELS.items() if row.formats} == {"resnet", "vit", "swin", "crossvit"}


@pytest.mark.parametrize(("name", "size"), [("vit", "S/16"), ("swin", "T"), ("crossvit", "9")])
def test_grids_are_those_of_the_position_tables(name, size):
    config = models.fields(name, size, **({"position": "both"} if name == "swin" else {}))
    image = jax.ShapeDtypeStruct((1, 240, 480, 3), jnp.float32)
    params = jax.eval_shape(models.build(config, num_classes=3).init, jax.random.key(0), image)
    shapes = {path: leaf.shape for path, leaf in flatten_dict(params, sep="/").items()}
    grids = models.lookup(name).grids((240, 480), config)
    class_tokens = 0 if name == "swin" else 1
    assert grids
    for path, (rows, columns) in grids.items():
        assert shapes[path][1] == rows * columns + class_tokens


def test_image_sizes_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="30x64 is not divisible by the patch size 16"):
        models.check_image_size(models.fields("vit", "S/16"), (30, 64))
    with pytest.raises(UserError, match="branch 2 of crossvit"):
        models.check_image_size(models.fields("crossvit", "9"), (252, 252))
    for name in ("swin", "mlp"):
        models.check_image_size(models.fields(name), (30, 64))


# A model in a user's own file

FILE = """
from __future__ import annotations

import dataclasses
from collections.abc import Callable

import flax.linen as nn

from attnjax.models import Model


@dataclasses.dataclass(frozen=True)
class Unused:
    x: int


class Linear(nn.Module):
    num_classes: int
    hidden: int
    widths: tuple[int, ...] = (4, 5)
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x, *, train: bool = False):
        x = nn.Dense(self.hidden, dtype=self.dtype)(x.reshape(x.shape[0], -1))
        return nn.Dense(self.num_classes)(x)


class Odd(nn.Module):
    num_classes: int
    activation: Callable = nn.relu


row = Model(Linear, sizes={"small": {"hidden": 2}}, rules=((r"kernel", ("fsdp", None)),))
seven = 7
"""


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my").mkdir()
    (tmp_path / "my" / "linear.py").write_text(FILE)
    return tmp_path / "my" / "linear.py"


def test_a_model_of_a_file_is_built_from_its_config_alone(path, tmp_path, monkeypatch):
    config = models.fields("my/linear.py:Linear", hidden=3)
    assert config == {"name": f"{path}:Linear", "hidden": 3, "widths": (4, 5)}
    saved = json.loads(json.dumps(config))
    monkeypatch.chdir("/")  # as in another process that evaluates the run
    model = models.build(saved, num_classes=6)
    assert jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((2, 8, 8, 3)))[0].shape == (2, 6)
    assert type(models.build(saved, num_classes=6)) is type(model)  # the file is loaded once
    assert models.lookup(saved["name"]).rules is None
    with pytest.raises(UserError, match=r"is not for this task\. Known: rnn, transformer"):
        models.build(saved, source_vocabulary=6, target_vocabulary=6)


def test_a_row_of_a_file_has_sizes_and_rules(path):
    config = models.fields("my/linear.py:row", "small")
    assert config["hidden"] == 2 and models.lookup(config["name"]).rules == (("kernel", ("fsdp", None)),)
    assert models.fields(**config) == config
    models.check_image_size(config, (5, 5))


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("my/liner.py:Linear", {}, "no model file '{folder}/my/liner.py'"),
        ("my/linear.py:Liner", {}, "'{path}' has no Liner; a model is a subclass of flax.linen.Module"),
        ("my/linear.py:", {}, "'{path}' has no ; a model is"),
        ("my/linear.py:seven", {}, "'{path}' is not a linen module: seven; a model is"),
        ("my/linear.py:Unused", {}, "'{path}' is not a linen module: Unused"),
        ("my/linear.py:Odd", {}, "Odd of '{path}' has a default of 'activation' that is not a number, string or tuple"),
        ("my/linear.py:Linear", {}, "Linear needs hidden$"),
        ("my/linear.py:Linear", {"hiden": 3}, "Linear has no field 'hiden', did you mean 'hidden'"),
        ("my/linear.py", {}, "unknown model 'my/linear.py'"),
    ],
)
def test_a_file_without_the_model_is_one_line(path, name, fields, message):
    message = re.escape(message.format(path=path, folder=path.parent.parent)).replace(r"\$", "$")
    with pytest.raises(UserError, match=message) as error:
        models.fields(name, **fields)
    assert "\n" not in str(error.value)
