import jax
import numpy as np
import pytest

from attnjax.errors import UserError
from attnjax.nn.positions import RESIZE_RULES, RelativePositions, resize_grid, resize_positions

TABLE = np.random.default_rng(0).normal(size=(14, 10, 8)).astype(np.float32)


@pytest.mark.parametrize("rule", RESIZE_RULES)
def test_the_same_grid_is_left_alone(rule):
    np.testing.assert_allclose(resize_grid(TABLE, (14, 10), rule), TABLE, atol=1e-6)


@pytest.mark.parametrize("rule", RESIZE_RULES)
def test_a_constant_table_stays_constant(rule):
    np.testing.assert_allclose(resize_grid(np.ones((7, 7, 2)), (24, 5), rule), 1, atol=1e-6)


@pytest.mark.parametrize("grid", [(24, 24), (7, 5), (20, 6)])
def test_bicubic_antialias_is_jax_image_resize(grid):
    expected = jax.image.resize(TABLE, (*grid, 8), "bicubic", antialias=True)
    np.testing.assert_allclose(resize_grid(TABLE, grid, "bicubic_antialias"), expected, atol=1e-5)


def test_linear_align_corners_keeps_corners_and_halves_between():
    out = resize_grid(TABLE, (27, 19), "linear_align_corners")
    np.testing.assert_allclose(out[::2, ::2], TABLE, atol=1e-6)
    np.testing.assert_allclose(out[1, 0], (TABLE[0, 0] + TABLE[1, 0]) / 2, atol=1e-6)


def test_bicubic_without_antialiasing_has_a_of_minus_three_quarters():
    row = np.arange(8.0).reshape(1, 8, 1) == 4
    out = resize_grid(row.astype(np.float32), (1, 16), "bicubic")[0, :, 0]
    # Weights of Keys' kernel with a = -0.75 at a quarter of a pixel.
    np.testing.assert_allclose(out[8], 0.8789062, atol=1e-6)
    np.testing.assert_allclose(out[10], 0.2617188, atol=1e-6)
    np.testing.assert_allclose(out[6], -0.1054688, atol=1e-6)


def test_class_token_stays_first():
    table = np.random.default_rng(0).normal(size=(1, 1 + 16, 4)).astype(np.float32)
    out = resize_positions(table, (4, 4), (6, 3))
    assert out.shape == (1, 1 + 18, 4)
    np.testing.assert_array_equal(out[:, 0], table[:, 0])
    np.testing.assert_allclose(out[:, 1:], resize_grid(table[0, 1:].reshape(4, 4, 4), (6, 3)).reshape(1, 18, 4))


def test_relative_bias_is_the_tables_entry_for_each_offset():
    window = (2, 3)
    positions = RelativePositions(num_heads=4)
    params = positions.init(jax.random.key(0), window)
    table = params["params"]["embedding"]
    bias = positions.apply(params, window)
    assert table.shape == (3, 5, 4) and bias.shape == (1, 4, 6, 6)
    tokens = [(y, x) for y in range(2) for x in range(3)]
    for q, query in enumerate(tokens):
        for k, key in enumerate(tokens):
            dy, dx = query[0] - key[0], query[1] - key[1]
            np.testing.assert_array_equal(bias[0, :, q, k], table[dy + 1, dx + 2])


def test_unknown_rule():
    with pytest.raises(UserError, match="did you mean 'bicubic'"):
        resize_grid(TABLE, (2, 2), "bicubik")
