"""Windows compared with slow, direct definitions, for random sizes."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.nn.windows import (
    SHIFTS,
    fit_window,
    merge,
    pad_to_multiple,
    partition,
    regions,
    relative_position_index,
    shifted_window_mask,
)


def random_cases(count):
    """Returns (size, window, shift) with whole windows, often not square and often without a shift along an axis."""
    rng = np.random.default_rng(0)
    cases = [((8, 8), (4, 4), (2, 2)), ((7, 7), (7, 7), (0, 0))]
    while len(cases) < count:
        window = tuple(rng.integers(1, 5, 2).tolist())
        size = tuple(w * n for w, n in zip(window, rng.integers(1, 4, 2).tolist(), strict=True))
        cases.append((size, window, tuple(rng.integers(0, w) for w in window)))
    return cases


CASES = random_cases(10)


def positions(size):
    return itertools.product(range(size[0]), range(size[1]))


@pytest.mark.parametrize(("size", "window", "shift"), CASES)
def test_partition_is_by_row_of_windows_then_by_row_within(size, window, shift):
    x = np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)
    windows = partition(jnp.asarray(x), window)
    down, across = size[0] // window[0], size[1] // window[1]
    assert windows.shape == (2, down * across, window[0] * window[1], 3)
    for b, (y, x_) in itertools.product(range(2), positions(size)):
        number = y // window[0] * across + x_ // window[1]
        token = y % window[0] * window[1] + x_ % window[1]
        np.testing.assert_array_equal(windows[b, number, token], x[b, y, x_])
    np.testing.assert_array_equal(merge(windows, window, size), x)


def allowed_pairs(size, window, shift, by):
    """Returns the pairs of positions that may attend, (H * W, H * W), by arranging their numbers like features."""
    numbers = jnp.arange(size[0] * size[1]).reshape(1, *size, 1)
    numbers = partition(SHIFTS[by][0](numbers, window, shift, fill=-1), window)[0, ..., 0]
    mask = np.asarray(shifted_window_mask(size, window, shift, by))
    allowed = np.zeros((size[0] * size[1],) * 2, bool)
    for tokens, may in zip(np.asarray(numbers), mask, strict=True):
        real = np.flatnonzero(tokens >= 0)
        assert not may[np.ix_(real, np.flatnonzero(tokens < 0))].any()  # no position sees the padding around the map
        allowed[np.ix_(tokens[real], tokens[real])] |= may[np.ix_(real, real)]
    return allowed


def may_attend(size, window, shift, query, key):
    """The definition: both are in one window after the roll, at the same offset as before it."""
    rolled = [tuple((p - s) % n for p, s, n in zip(at, shift, size, strict=True)) for at in (query, key)]
    one_window = all(a // w == b // w for a, b, w in zip(*rolled, window, strict=True))
    as_before = all(a - b == c - d for a, b, c, d in zip(*rolled, query, key, strict=True))
    return one_window and as_before


@pytest.mark.parametrize("by", SHIFTS)
@pytest.mark.parametrize(("size", "window", "shift"), CASES)
def test_mask_allows_neighbours_of_one_window_only(size, window, shift, by):
    expected = [[may_attend(size, window, shift, q, k) for k in positions(size)] for q in positions(size)]
    np.testing.assert_array_equal(allowed_pairs(size, window, shift, by), expected)


def test_mask_is_that_of_microsofts_nine_slices():
    """Microsoft's code numbers the regions of the rolled map differently, but divides each window in the same way."""
    size, (w, s) = (21, 14), (7, 3)
    numbers = np.zeros(size)
    slices = (slice(0, -w), slice(-w, -s), slice(-s, None))
    for i, (rows, columns) in enumerate(itertools.product(slices, slices)):
        numbers[rows, columns] = i
    windows = partition(numbers[None, :, :, None], (w, w))[0, ..., 0]
    expected = windows[:, :, None] == windows[:, None, :]
    np.testing.assert_array_equal(shifted_window_mask(size, (w, w), (s, s)), expected)


@pytest.mark.parametrize("by", SHIFTS)
@pytest.mark.parametrize(("size", "window", "shift"), CASES)
def test_every_shift_can_be_undone(size, window, shift, by):
    x = np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)
    arrange, restore = SHIFTS[by]
    moved = arrange(jnp.asarray(x), window, shift)
    assert moved.shape[1] % window[0] == moved.shape[2] % window[1] == 0
    np.testing.assert_array_equal(restore(moved, window, shift), x)


def test_padding_takes_more_windows_than_rolling():
    assert shifted_window_mask((8, 12), (4, 4), (2, 2), "cyclic").shape == (2 * 3, 16, 16)
    assert shifted_window_mask((8, 12), (4, 4), (2, 2), "padding").shape == (3 * 4, 16, 16)
    assert shifted_window_mask((8, 12), (4, 4), (2, 0), "padding").shape == (3 * 3, 16, 16)


def test_nine_regions_of_two_by_two_windows():
    row = [0, 0, 1, 1, 1, 1, 2, 2]
    expected = 3 * np.array(row)[:, None] + row
    np.testing.assert_array_equal(regions((8, 8), (4, 4), (2, 2)), expected)


def test_without_a_shift_regions_are_windows_and_nothing_is_masked():
    np.testing.assert_array_equal(regions((4, 6), (2, 3), (0, 0))[::2, ::3], [[0, 1], [2, 3]])
    assert shifted_window_mask((4, 6), (2, 3), (0, 0)).all()


def test_mask_of_a_map_is_that_of_the_map_padded_to_whole_windows():
    padded = pad_to_multiple(jnp.ones((1, 13, 6, 1)), (5, 4))
    assert padded.shape == (1, 15, 8, 1)
    assert padded.sum() == 13 * 6 == padded[:, :13, :6].sum()
    masks = [shifted_window_mask(size, (5, 4), (2, 1)) for size in ((13, 6), (15, 8))]
    np.testing.assert_array_equal(*masks)


@pytest.mark.parametrize("window", [(1, 1), (3, 3), (2, 4), (4, 1)])
def test_relative_position_index_numbers_offsets(window):
    index = relative_position_index(window)
    tokens = list(positions(window))
    for (q, (qy, qx)), (k, (ky, kx)) in itertools.product(enumerate(tokens), enumerate(tokens)):
        row, column = qy - ky + window[0] - 1, qx - kx + window[1] - 1
        assert index[q, k] == row * (2 * window[1] - 1) + column
    assert sorted(set(index.flat)) == list(range((2 * window[0] - 1) * (2 * window[1] - 1)))


@pytest.mark.parametrize(
    ("size", "window", "expected"),
    [
        ((14, 14), 7, ((7, 7), (3, 3))),
        ((7, 7), 7, ((7, 7), (0, 0))),  # one window, no shift
        ((4, 4), 7, ((4, 4), (0, 0))),
        ((4, 9), 7, ((4, 7), (0, 3))),  # each axis separately
        ((8, 8), 1, ((1, 1), (0, 0))),
    ],
)
def test_windows_shrink_to_the_map_and_then_stay(size, window, expected):
    assert fit_window(size, window) == expected
