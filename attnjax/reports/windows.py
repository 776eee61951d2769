"""The figure that illustrates `attnjax.nn.windows`: shifted windows, their regions and attention masks."""

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from attnjax.errors import UserError
from attnjax.nn.windows import Pair, fit_window, partition, regions, roll, shifted_window_mask

_COLORS = colormaps["Set3"]  # cycled over regions; with twelve colors, neighbors differ


def _paint(labels):
    """Returns the color of each label, (...) -> (..., 3); white for negative ones."""
    return np.where(labels[..., None] < 0, 1.0, _COLORS(labels % _COLORS.N)[..., :3])


def _draw_map(axis, labels, windows, title):
    """Draws labels (H, W), one number per token, with the borders of `windows`, window labels (H, W)."""
    height, width = labels.shape
    axis.imshow(_paint(labels), extent=(0, width, height, 0))
    for y, x in np.ndindex(height, width):
        axis.text(x + 0.5, y + 0.5, labels[y, x] + 1, ha="center", va="center", fontsize=8)
    axis.set_xticks(np.arange(width + 1), minor=True)
    axis.set_yticks(np.arange(height + 1), minor=True)
    axis.grid(which="minor", color="white", lw=0.8)
    for line, along in ((axis.axhline, windows[:, 0]), (axis.axvline, windows[0])):
        for border in (0, *(np.flatnonzero(np.diff(along)) + 1), len(along)):
            line(border, color="black", lw=2.5, clip_on=False)
    axis.tick_params(which="both", length=0)
    axis.set(xticks=[], yticks=[])
    axis.set_title(title, fontsize=10)


def _draw_mask(axis, mask, labels, title):
    """Draws a mask (N, N): where a query (row) may attend to a key (column), in the color of their region."""
    tokens = len(labels)
    axis.imshow(_paint(np.where(mask, labels[:, None], -1)), extent=(0, tokens, tokens, 0))
    axis.set(xticks=[0, tokens], yticks=[0, tokens], xlabel="key", ylabel="query")
    axis.tick_params(length=0, labelsize=8)
    axis.set_title(title, fontsize=10)


def windows_figure(size: Pair = (8, 8), window: int = 4) -> Figure:
    """Returns a figure of the windows of a map of `size` (height, width), after Liu et al. (2021), figures 2 and 4.

    Top: regular windows; the regions into which shifted windows cut the map; the same after the cyclic shift, when a
    regular window holds several. Bottom: the mask of each window. UserError if `window` does not divide `size`, or
    covers it without a shift.
    """
    pair, shift = fit_window(size, window)
    if not any(shift) or any(length % w for length, w in zip(size, pair, strict=True)):
        raise UserError(f"windows of {window} do not divide a map of {size[0]}x{size[1]}, or do not shift on it")
    regular, cut = regions(size, pair, (0, 0)), regions(size, pair, shift)
    rolled = np.asarray(roll(cut[None, :, :, None], pair, shift))
    masks, labels = np.asarray(shifted_window_mask(size, pair, shift)), np.asarray(partition(rolled, pair))[0, ..., 0]
    columns = max(3, min(len(masks), 6))
    rows = -(-len(masks) // columns)
    figure = Figure(figsize=(2.3 * columns, 3.4 + 2.6 * rows), layout="constrained")
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=[3.4, 2.6 * rows]).ravel()
    maps = {
        "regular windows": (regular, regular),
        "shifted windows: regions": (cut, cut),
        "after the cyclic shift": (rolled[0, :, :, 0], regular),
    }
    for axis, (title, (tokens, windows)) in zip(above.subplots(1, 3), maps.items(), strict=True):
        _draw_map(axis, tokens, windows, title)
    axes = below.subplots(rows, columns, squeeze=False).ravel()
    for i, (mask, axis) in enumerate(zip(masks, axes, strict=False)):
        _draw_mask(axis, mask, labels[i], f"mask of window {i + 1}")
    for axis in axes[len(masks) :]:
        axis.axis("off")
    return figure
