"""Windows over a map, and how they shift (Liu et al. 2021, section 3.2); pure functions.

Attention inside windows costs time linear in the image, but never crosses a window's border. So every second block
moves the windows by half their size. Along one axis of 8 positions, window 4, shift 2:

    positions            0 1 2 3 4 5 6 7
    windows             |A A A A|B B B B|
    shifted windows     |p p|q q q q|r r|       one more than before, and the outer ones are smaller

"padding" makes all of them full by zeros around the map, for the price of an extra window along each axis (here, in two
dimensions, nine in place of four):

    padded map      . . 0 1 2 3 4 5 6 7 . .
    windows        |. . p p|q q q q|r r . .|    p sees p and r sees r, but no padding

"cyclic" is the paper's trick: what sticks out on the left fills the gap on the right, and the count stays the same:

    rolled map           2 3 4 5 6 7 0 1
    windows             |q q q q|r r p p|       p sees p and r sees r, but not each other

In both the letters are all there is to the mask: the shifted borders cut the map into `regions`, and within a window a
token attends to its own region. `shifted_window_mask` sends the map of regions down the path that the features go, and
compares. In two dimensions a region is a pair of letters: there are nine where the windows are 2x2. For a picture:
`python experiments/figures.py --windows windows.png`.

Sizes, windows and shifts are pairs (height, width). A shift is less than the window; 0 along an axis leaves it alone.
"""

import jax.numpy as jnp
import numpy as np

Pair = tuple[int, int]


def fit_window(size: Pair, window: int) -> tuple[Pair, Pair]:
    """Returns the window and the shift of shifted blocks for a map of `size`: `window`, and half of it.

    An axis no longer than the window is one window, as long as itself, and has nowhere to shift to; as in Microsoft's
    code, which decides for both axes by the shorter one, and timm's, which decides for each axis, as here.
    """
    return tuple(min(length, window) for length in size), tuple(window // 2 * (length > window) for length in size)


def pad_to_multiple(x, multiple: Pair):
    """Pads a map (B, H, W, C) by zeros at the bottom and right to whole multiples of (height, width)."""
    bottom, right = (-length % unit for length, unit in zip(x.shape[1:3], multiple, strict=True))
    return jnp.pad(x, ((0, 0), (0, bottom), (0, right), (0, 0)))


def partition(x, window: Pair):
    """Cuts a map of whole windows into them: (B, H, W, C) -> (B * windows, h * w, C), row by row."""
    (batch, height, width, channels), (h, w) = x.shape, window
    x = x.reshape(batch, height // h, h, width // w, w, channels)
    return x.swapaxes(2, 3).reshape(-1, h * w, channels)


def merge(windows, window: Pair, size: Pair):
    """Puts windows (B * windows, h * w, C) together to a map (B, H, W, C) of `size`; the inverse of `partition`."""
    (height, width), (h, w), channels = size, window, windows.shape[-1]
    x = windows.reshape(-1, height // h, width // w, h, w, channels)
    return x.swapaxes(2, 3).reshape(-1, height, width, channels)


def roll(x, window: Pair, shift: Pair, fill=0):
    """Moves a map (B, H, W, C) up and left by `shift`; what leaves comes in again at the other end."""
    return jnp.roll(x, (-shift[0], -shift[1]), axis=(1, 2))


def roll_back(x, window: Pair, shift: Pair):
    """Undoes `roll`."""
    return jnp.roll(x, shift, axis=(1, 2))


def _margins(window, shift):
    """Positions added before and after the map along each axis, so that windows on its padded form are the shifted."""
    return [((w - s) % w, s) for w, s in zip(window, shift, strict=True)]


def surround(x, window: Pair, shift: Pair, fill=0):
    """Pads a map (B, H, W, C) by `fill` to the map of which the shifted windows are the regular ones."""
    return jnp.pad(x, ((0, 0), *_margins(window, shift), (0, 0)), constant_values=fill)


def crop(x, window: Pair, shift: Pair):
    """Undoes `surround`."""
    (top, bottom), (left, right) = _margins(window, shift)
    return x[:, top : x.shape[1] - bottom, left : x.shape[2] - right]


# How to make shifted windows the regular windows of another map, and to go back from it.
SHIFTS = {"cyclic": (roll, roll_back), "padding": (surround, crop)}


def regions(size: Pair, window: Pair, shift: Pair) -> np.ndarray:
    """Returns (H, W) int32: the shifted window that each position of the map lies in, numbered row by row from 0."""
    rows, columns = ((np.arange(length) - s) // w + (s > 0) for length, w, s in zip(size, window, shift, strict=True))
    return (rows[:, None] * (columns[-1] + 1) + columns).astype(np.int32)


def shifted_window_mask(size: Pair, window: Pair, shift: Pair, by: str = "cyclic"):
    """Returns (windows, N, N) boolean, True = may attend: the pair is of one region; N tokens a window.

    `size` is the map's, before or after `pad_to_multiple`; `by` is one of SHIFTS: by "padding", what is around the map
    is a region of its own.
    """
    arrange, _ = SHIFTS[by]
    size = tuple(-(-length // w) * w for length, w in zip(size, window, strict=True))
    labels = jnp.asarray(regions(size, window, shift))[None, :, :, None]
    labels = partition(arrange(labels, window, shift, fill=-1), window)
    return labels == labels.swapaxes(1, 2)


def relative_position_index(window: Pair) -> np.ndarray:
    """Returns (N, N) int32: for each query and key their row in a table of (2h - 1) * (2w - 1) relative positions.

    The row of (dy, dx), query minus key, is (dy + h - 1) * (2w - 1) + dx + w - 1.
    """
    h, w = window
    y, x = np.mgrid[:h, :w].reshape(2, -1)
    dy, dx = (axis[:, None] - axis[None, :] for axis in (y, x))
    return ((dy + h - 1) * (2 * w - 1) + dx + w - 1).astype(np.int32)
