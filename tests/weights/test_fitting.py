"""Fitting weights to a model: the grid of a position table, the head, what else differs."""

import dataclasses

import numpy as np
import pytest

from attnjax.errors import UserError
from attnjax.nn.positions import resize_positions
from attnjax.weights.fitting import fit
from attnjax.weights.published import Weights

TABLE, BIAS = "params/positions/embedding", "params/head/bias"


def grids(image_size):
    return {TABLE: (image_size[0] // 4, image_size[1] // 4)}


def variables(tokens, classes=3):
    rng = np.random.default_rng(0)
    return {TABLE: rng.normal(size=(1, 1 + tokens, 6)).astype(np.float32), BIAS: np.arange(classes, dtype=np.float32)}


def weights(tokens, image_size):
    return Weights("a", variables(tokens), 3, classes=None, image_size=image_size, resize_rule="bicubic")


def test_the_grid_is_that_of_the_image_size_where_it_is_known():
    """16 patches are 2x8, not 4x4."""
    old = weights(16, (8, 32))
    found, report = fit(old, variables(16), grids, (16, 16))
    assert report == ["positions resized 2x8 -> 4x4 (bicubic)"]
    np.testing.assert_array_equal(found[TABLE], resize_positions(old.variables[TABLE], (2, 8), (4, 4), "bicubic"))
    assert np.array_equal(found[BIAS], old.variables[BIAS])


def test_the_grid_is_square_where_the_image_size_is_unknown():
    _, report = fit(weights(16, None), variables(8), grids, (8, 16))
    assert report == ["positions resized 4x4 -> 2x4 (bicubic)"]
    with pytest.raises(UserError, match="positions for 8 patches, which do not form a 3x3 grid"):
        fit(weights(8, None), variables(12), grids, (12, 16))


def test_the_grid_is_the_models_own_where_it_fits():
    """16 patches for a model with a grid of 2x8 are neither 4x4 nor resized."""
    old = weights(16, None)
    found, report = fit(old, variables(16), grids, (8, 32))
    assert report == []
    assert found[TABLE] is old.variables[TABLE]


@pytest.mark.parametrize(
    ("theirs", "ours", "line"),
    [
        (("cat", "dog", "pig"), ("bus", "car", "van"), "3 classes of other names or order, as 'cat' -> 'bus'"),
        (("cat", "dog", "pig"), ("cat", "pig", "dog"), "3 classes of other names or order, as 'dog' -> 'pig'"),
        (("cat", "dog", "pig"), ("cat", "dog", "pig"), None),
        (("cat", "dog", "pig"), None, None),
    ],
)
def test_the_head_stays_fresh_for_as_many_other_classes(theirs, ours, line):
    old, fresh = dataclasses.replace(weights(16, (16, 16)), classes=theirs), variables(16)
    found, report = fit(old, fresh, grids, (16, 16), ours)
    assert report == ([f"head replaced: {line}"] if line else [])
    assert found[BIAS] is (fresh if line else old.variables)[BIAS]


def test_a_head_whose_classes_have_no_names_is_kept_and_said():
    _, report = fit(weights(16, (16, 16)), variables(16), grids, (16, 16), ("cat", "dog", "pig"))
    assert report == ["head kept: its 3 classes have no names in 'a'"]


def test_the_head_stays_fresh_for_other_classes():
    fresh = variables(16, classes=5)
    found, report = fit(weights(16, (16, 16)), fresh, grids, (16, 16))
    assert report == ["head replaced: 3 -> 5 classes"]
    assert found[BIAS] is fresh[BIAS]
    del fresh[BIAS]
    found, report = fit(weights(16, (16, 16)), fresh, grids, (16, 16))
    assert (report, found.keys()) == (["head of 3 classes left out"], {TABLE})


def test_everything_else_must_fit():
    fresh = variables(16) | {"params/final_norm/scale": np.zeros(6)}
    with pytest.raises(UserError, match=r"'a' does not fit the model: 1 missing: params/final_norm/scale$"):
        fit(weights(16, (16, 16)), fresh, grids, (16, 16))
