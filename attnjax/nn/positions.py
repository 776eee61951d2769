"""Position embeddings: sinusoidal, learned, relative biases; and resizing of tables to another grid."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from attnjax.errors import UserError, check_choice
from attnjax.nn.windows import Pair, relative_position_index

# form -> (angular frequencies (d/2,) for width d, number of the first position)
SINUSOIDS = {
    "interleaved": (lambda d: 10000.0 ** (-np.arange(0, d, 2) / d), 0),  # Vaswani et al. 2017, section 3.5
    "concatenated": (lambda d: 10000.0 ** (-np.arange(0, d, 2) / d), 0),  # Marian: all sines, then all cosines
    "fairseq": (lambda d: 10000.0 ** (-np.arange(d // 2) / (d // 2 - 1)), 2),  # and tensor2tensor, from 0
}


def sinusoids(length: int, width: int, form: str = "interleaved") -> np.ndarray:
    """Returns the table of sinusoidal positions (length, width) float32, computed in float64.

    "interleaved" is the paper's form, with sines and cosines alternating. "concatenated" and "fairseq" have all sines
    first; "fairseq" has other frequencies and counts from 2. UserError for an odd width.
    """
    check_choice("sinusoid form", form, SINUSOIDS)
    if width % 2:
        raise UserError(f"sinusoidal positions need an even width, got {width}")
    frequencies, first = SINUSOIDS[form]
    angles = (np.arange(length) + first)[:, None] * frequencies(width)
    axis = -1 if form == "interleaved" else -2
    return np.stack([np.sin(angles), np.cos(angles)], axis).reshape(length, width).astype(np.float32)


class LearnedPositions(nn.Module):
    """Adds a learned table to the tokens (Dosovitskiy et al. 2020, equation 1): (B, N, D) -> (B, N, D)."""

    std: float = 0.02  # of the initial table
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x):
        table = self.param("embedding", nn.initializers.normal(self.std), (1, *x.shape[1:]), "float32")
        return x + jnp.broadcast_to(table, x.shape).astype(self.dtype)


class LearnedPositions2D(nn.Module):
    """Adds a learned row vector and a learned column vector, concatenated, half the width each.

    Call with tokens (B, p + h * w, D), of which the last h * w are a grid (h, w) of patches, and with the grid; returns
    (B, p + h * w, D). The p tokens before the patches, such as a class token, have vectors of their own (Dosovitskiy et
    al. 2020, appendix D.4).
    """

    std: float = 0.02  # of the initial tables
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x, grid: Pair):
        (h, w), width = grid, x.shape[-1]
        before, half = x.shape[1] - h * w, width // 2

        def table(name, *shape):
            return self.param(name, nn.initializers.normal(self.std), shape, "float32")

        rows, columns = table("rows", h, half), table("columns", w, width - half)
        positions = jnp.concatenate([jnp.repeat(rows, w, axis=0), jnp.tile(columns, (h, 1))], axis=1)
        if before:
            positions = jnp.concatenate([table("class_token", before, width), positions])
        return x + jnp.broadcast_to(positions, x.shape).astype(self.dtype)


class RelativePositions(nn.Module):
    """A learned bias per head and relative position in a window (Liu et al. 2021, section 3.2, equation 4).

    Call with the window (h, w); returns (1, heads, N, N) float32 for its N = h * w tokens, to add to the attention
    logits. In the table (2h - 1, 2w - 1, heads) the entry (h - 1, w - 1) is for offset 0.
    """

    num_heads: int
    std: float = 0.02  # of the initial table

    @nn.compact
    def __call__(self, window: Pair):
        shape = (2 * window[0] - 1, 2 * window[1] - 1, self.num_heads)
        table = self.param("embedding", nn.initializers.normal(self.std), shape, "float32")
        bias_QKH = table.reshape(-1, self.num_heads)[relative_position_index(window)]
        return bias_QKH.transpose(2, 0, 1)[None]


def _cubic(distance, a):
    """Keys' (1981) cubic convolution kernel with parameter a."""
    d = np.abs(distance)
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    far = a * (d**3 - 5 * d**2 + 8 * d - 4)
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


def _half_pixel_centers(old, new):
    return (np.arange(new) + 0.5) * old / new - 0.5


def _linear_align_corners(old, new):
    """Google's rule: linear, with fixed corners (scipy.ndimage.zoom of order 1)."""
    centers = np.linspace(0, old - 1, new) if new > 1 else np.zeros(1)
    return np.maximum(0, 1 - np.abs(centers[:, None] - np.arange(old)))


def bicubic_taps(old: int, new: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the indices of the four `old` points that each `new` point is interpolated from, and their weights.

    Both are (new, 4). As torch's bicubic interpolation without antialiasing: half-pixel centers, a = -0.75, repeated
    edges.
    """
    centers = _half_pixel_centers(old, new)
    taps = np.floor(centers)[:, None] + np.arange(-1, 3)
    weights = _cubic(centers[:, None] - taps, a=-0.75)
    return np.clip(taps, 0, old - 1).astype(int), weights


def _bicubic(old, new):
    """Hugging Face's and Microsoft's rule: torch's bicubic without antialiasing."""
    taps, weights = bicubic_taps(old, new)
    matrix = np.zeros((new, old))
    np.add.at(matrix, (np.arange(new)[:, None], taps), weights)
    return matrix


def _bicubic_antialias(old, new):
    """timm's rule: torch's bicubic with antialiasing, a = -0.5, weights renormalized at the edges."""
    scale = max(old / new, 1.0)
    weights = _cubic((_half_pixel_centers(old, new)[:, None] - np.arange(old)) / scale, a=-0.5)
    return weights / weights.sum(1, keepdims=True)


RESIZE_RULES = dict(linear_align_corners=_linear_align_corners, bicubic=_bicubic, bicubic_antialias=_bicubic_antialias)


def resize_grid(table, new_grid: tuple[int, int], rule: str = "bicubic_antialias"):
    """Resizes a table of grid embeddings (h, w, D) to (*new_grid, D) float32 with one of RESIZE_RULES."""
    check_choice("resize rule", rule, RESIZE_RULES)
    rows, columns = (RESIZE_RULES[rule](old, new) for old, new in zip(table.shape[:2], new_grid, strict=True))
    return np.einsum("yh,xw,hwd->yxd", rows, columns, np.asarray(table, np.float64)).astype(np.float32)


def resize_positions(table, old_grid: tuple[int, int], new_grid: tuple[int, int], rule: str = "bicubic_antialias"):
    """Resizes a ViT position table (1, p + h * w, D) from old_grid (h, w) to new_grid; keeps the first p tokens."""
    tokens = old_grid[0] * old_grid[1]
    prefix, grid = np.split(np.asarray(table), [table.shape[1] - tokens], axis=1)
    resized = resize_grid(grid.reshape(*old_grid, -1), new_grid, rule)
    return np.concatenate([prefix, resized.reshape(1, -1, table.shape[-1])], axis=1)
