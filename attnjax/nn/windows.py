"""Windows of a feature map and how they shift (Liu et al. 2021, section 3.2); pure functions.

The cost of attention inside windows is linear in the image size, but no token sees beyond its window. So every second
block shifts the windows by half their size. Along one axis of 8 positions, window 4, shift 2:

    positions            0 1 2 3 4 5 6 7
    windows             |A A A A|B B B B|
    shifted windows     |p p|q q q q|r r|       one more window, and the outer ones are smaller

"padding" fills the outer windows with zeros around the map, at the cost of an extra window along each axis (in two
dimensions, here nine windows instead of four):

    padded map      . . 0 1 2 3 4 5 6 7 . .
    windows        |. . p p|q q q q|r r . .|    p sees p and r sees r, but no padding

"cyclic", the paper's method, rolls the map, so that the number of windows stays the same:

    rolled map           2 3 4 5 6 7 0 1
    windows             |q q q q|r r p p|       p sees p and r sees r, but not each other

In both cases the letters give the mask: the shifted borders cut the map into `regions`, and a token attends to the
tokens of its window in its own region. `shifted_window_mask` arranges the map of regions as the features are arranged,
and compares. In two dimensions a region is a pair of letters: 2x2 windows have nine. For a picture run
`python experiments/figures.py --windows windows.png`.

Sizes, windows and shifts are pairs (height, width). A shift is smaller than the window; 0 is no shift along that axis.
"""

import jax.numpy as jnp
import numpy as np

Pair = tuple[int, int]


SHIFT_RULES = ("per_axis", "shorter_side")


def fit_window(size: Pair, window: int, rule: str = "per_axis") -> tuple[Pair, Pair]:
    """Returns the window and the shift of shifted blocks for a map of `size`: `window`, and half of it.

    With "per_axis", timm's rule, an axis no longer than the window is a single window of its own length, without a
    shift. With "shorter_side", Microsoft's and Hugging Face's, both axes follow the shorter one: if it is no longer
    than the window, the window is a square of its length and neither axis shifts.
    """
    (height, width), half = size, window // 2
    if rule == "shorter_side" and min(size) <= window:
        return (min(size), min(size)), (0, 0)
    return (min(height, window), min(width, window)), (half * (height > window), half * (width > window))


def pad_to_multiple(x, multiple: Pair):
    """Pads a map (B, H, W, C) with zeros at the bottom and right to multiples of (height, width)."""
    bottom, right = (-length % unit for length, unit in zip(x.shape[1:3], multiple, strict=True))
    return jnp.pad(x, ((0, 0), (0, bottom), (0, right), (0, 0)))


def partition(x, window: Pair):
    """Cuts a map into its windows, row by row: (B, H, W, C) -> (B, windows, h * w, C)."""
    (batch, height, width, channels), (h, w) = x.shape, window
    x = x.reshape(batch, height // h, h, width // w, w, channels)
    return x.swapaxes(2, 3).reshape(batch, -1, h * w, channels)


def merge(windows, window: Pair, size: Pair):
    """Joins windows (B, windows, h * w, C) to a map (B, H, W, C) of `size`; the inverse of `partition`."""
    (height, width), (h, w), channels = size, window, windows.shape[-1]
    x = windows.reshape(-1, height // h, width // w, h, w, channels)
    return x.swapaxes(2, 3).reshape(-1, height, width, channels)


def roll(x, window: Pair, shift: Pair, fill=0):
    """Rolls a map (B, H, W, C) up and left by `shift`."""
    return jnp.roll(x, (-shift[0], -shift[1]), axis=(1, 2))


def _margins(window, shift):
    """Returns the padding (before, after) along each axis that makes the shifted windows regular ones."""
    return [((w - s) % w, s) for w, s in zip(window, shift, strict=True)]


def surround(x, window: Pair, shift: Pair, fill=0):
    """Pads a map (B, H, W, C) with `fill` so that its shifted windows are the regular ones of the result."""
    return jnp.pad(x, ((0, 0), *_margins(window, shift), (0, 0)), constant_values=fill)


def crop(x, window: Pair, shift: Pair):
    """Undoes `surround`."""
    (top, bottom), (left, right) = _margins(window, shift)
    return x[:, top : x.shape[1] - bottom, left : x.shape[2] - right]


# Rearranges a map so that its shifted windows become regular ones, and the inverse.
SHIFTS = {"cyclic": (roll, lambda x, window, shift: jnp.roll(x, shift, axis=(1, 2))), "padding": (surround, crop)}


def regions(size: Pair, window: Pair, shift: Pair) -> np.ndarray:
    """Returns (H, W) int32: the number of the shifted window at each position of the map, row by row from 0."""
    rows, columns = ((np.arange(length) - s) // w + (s > 0) for length, w, s in zip(size, window, shift, strict=True))
    return (rows[:, None] * (columns[-1] + 1) + columns).astype(np.int32)


def shifted_window_mask(size: Pair, window: Pair, shift: Pair, by: str = "cyclic"):
    """Returns (windows, N, N) boolean, True = may attend, for pairs in the same region; N tokens per window.

    `size` is the map's, before or after `pad_to_multiple`; `by` is one of SHIFTS. With "padding", the padding around
    the map is a region of its own.
    """
    arrange, _ = SHIFTS[by]
    padded = -(-size[0] // window[0]) * window[0], -(-size[1] // window[1]) * window[1]
    labels = jnp.asarray(regions(padded, window, shift))[None, :, :, None]
    labels = partition(arrange(labels, window, shift, fill=-1), window)[0]
    return labels == labels.swapaxes(1, 2)


def relative_position_index(window: Pair) -> np.ndarray:
    """Returns (N, N) int32: the row of each query and key in a table of (2h - 1) * (2w - 1) relative positions.

    The row of (dy, dx), query minus key, is (dy + h - 1) * (2w - 1) + dx + w - 1.
    """
    h, w = window
    y, x = np.mgrid[:h, :w].reshape(2, -1)
    dy, dx = (axis[:, None] - axis[None, :] for axis in (y, x))
    return ((dy + h - 1) * (2 * w - 1) + dx + w - 1).astype(np.int32)
