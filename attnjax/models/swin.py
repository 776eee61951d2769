"""Swin Transformer (Liu et al. 2021).

A pyramid of maps, as a convolutional network's: each stage halves height and width and doubles the channels. Within a
stage tokens attend inside windows only, which every second block shifts; how is told in `attnjax/nn/windows.py`.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from attnjax.errors import UserError, nearest
from attnjax.models.vit import PatchEmbedding
from attnjax.nn import remat as layers
from attnjax.nn.attention import MultiHeadAttention
from attnjax.nn.blocks import EncoderBlock, layer_norm
from attnjax.nn.linear import Linear
from attnjax.nn.positions import LearnedPositions, RelativePositions
from attnjax.nn.windows import SHIFTS, Pair, fit_window, merge, pad_to_multiple, partition, shifted_window_mask

EPSILON = 1e-5  # of every LayerNorm, as in Microsoft's code

# "absolute": a table added to the patches; "relative": biases on the attention logits; table 4 compares them
POSITIONS = ("none", "absolute", "relative", "both")


def padded_grid(image_size: Pair, patch_size: int) -> Pair:
    """Returns the rows and columns of patches of an image padded to whole ones."""
    return tuple(-(-length // patch_size) for length in image_size)


class WindowAttention(MultiHeadAttention):
    """Attention inside the windows of a map, shifted or not: (B, H, W, C) -> (B, H, W, features) (section 3.2).

    For a shifted block `mask` is `shifted_window_mask` of the padded map, (windows, N, N); for another, None.
    """

    window: Pair = (7, 7)
    shift: Pair = (0, 0)
    shift_by: str = "cyclic"
    relative: bool = True

    def setup(self):
        super().setup()
        self.relative_positions = RelativePositions(self.num_heads)

    def __call__(self, x, *, mask=None, train: bool = False):
        batch, height, width, _ = x.shape
        arrange, restore = SHIFTS[self.shift_by]
        # First whole windows, then the shift, as torchvision and Hugging Face: rolled first, as in timm, rows that come
        # round lie before the padding, where the mask takes them for neighbours of the other end. Padding is seen like
        # any token of its region.
        y = arrange(pad_to_multiple(x, self.window), self.window, self.shift)
        bias = self.relative_positions(self.window) if self.relative else None
        if mask is not None:
            mask = jnp.tile(mask[:, None], (batch, 1, 1, 1))
        windows = super().__call__(partition(y, self.window), mask=mask, bias=bias, train=train)
        y = restore(merge(windows, self.window, y.shape[1:3]), self.window, self.shift)
        return y[:, :height, :width]


class PatchMerging(nn.Module):
    """Makes one token of 2x2: (B, H, W, C) -> (B, H/2, W/2, 2C), sizes rounded up (section 3.1)."""

    kernel_init: Callable | None = None
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x):
        x = pad_to_multiple(x, (2, 2))
        batch, height, width, channels = x.shape
        x = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
        x = x.transpose(0, 1, 3, 4, 2, 5)  # of the four, those of the left column come first, in published weights
        x = x.reshape(batch, height // 2, width // 2, 4 * channels)
        x = layer_norm(EPSILON, self.dtype, "norm")(x)
        reduction = Linear(
            2 * channels, use_bias=False, kernel_init=self.kernel_init, dtype=self.dtype, name="reduction"
        )
        return reduction(x)


class Swin(nn.Module):
    """Swin Transformer: (B, H, W, C) -> logits (B, num_classes) float32, or (B, width of the last map) if it is 0.

    SWIN_SIZES holds the paper's (section 3.3) and small ones. Any image size will do: what is no whole number of
    patches, windows or 2x2 tokens is padded by zeros at the bottom and right. A window shrinks to a map smaller than
    itself, and with it the table of relative positions.
    """

    num_classes: int
    patch_size: int = 4
    width: int = 96  # of the first stage; doubles from stage to stage
    depths: Sequence[int] = (2, 2, 6, 2)  # blocks per stage
    num_heads: Sequence[int] = (3, 6, 12, 24)  # per stage
    mlp_ratio: float = 4.0  # hidden units of the MLP per channel
    window: int = 7
    shift: bool = True  # in every second block; table 4
    shift_by: str = "cyclic"  # or "padding", which computes the same in more windows; section 3.2
    position: str = "relative"  # of POSITIONS; table 4
    # Of the kernels at the start, but the patches', whose scale the LayerNorm after it takes out. Microsoft's normal
    # distribution is truncated, but at 2: a hundred deviations. 0: Xavier's, which goes by the width and suits small.
    kernel_std: float = 0.02
    dropout: float = 0.0
    attention_dropout: float = 0.0
    drop_path: float = 0.0  # of the last block; rises linearly from 0
    attention_kernel: str = "auto"
    dtype: str = "float32"
    remat: str = "none"  # or "full", "dots": what of a block the backward pass computes again; see `nn.layers`
    scan: bool = False  # over a stage's pairs of blocks, compiled once; see `nn.layers`

    def setup(self):
        for field, value, known in (("shift_by", self.shift_by, SHIFTS), ("position", self.position, POSITIONS)):
            if value not in known:
                raise UserError(f"unknown {field} '{value}' of swin, {nearest(value, known)}")
        if len(self.depths) != len(self.num_heads):
            raise UserError(f"swin has depths {self.depths} but num_heads {self.num_heads}: one of each per stage")
        if self.window < 1:
            raise UserError(f"swin needs a window of at least 1 token, got {self.window}")
        self.final_norm = layer_norm(EPSILON, self.dtype, None)
        self.kernel_init = nn.initializers.normal(self.kernel_std) if self.kernel_std else None
        self.head = Linear(self.num_classes, kernel_init=self.kernel_init)

    def __call__(self, x, *, train: bool = False):
        x, _ = self.tokens(x, train=train)
        x = x.astype(jnp.float32).mean(1)
        return self.head(x) if self.num_classes else x

    def tokens(self, x, *, train: bool = False) -> tuple[jax.Array, tuple[int, int]]:
        """Returns the last map, after its LayerNorm, as tokens (B, H * W, C), and the grid (H, W)."""
        x = self.final_norm(self.features(x, train=train)[-1])
        return x.reshape(x.shape[0], -1, x.shape[-1]), x.shape[1:3]

    @nn.compact
    def features(self, x, *, train: bool = False) -> list:
        """Returns the map at the end of each stage, for images (B, H, W, C).

        Map s of 0, 1, ... has a token for each square of d = patch_size * 2**s pixels: (B, H/d, W/d, width * 2**s),
        sizes rounded up, in `dtype`. No LayerNorm comes after it.
        """
        x, maps = self._embed(x, train), []
        for stage in range(len(self.depths)):
            if stage:
                x = PatchMerging(self.kernel_init, self.dtype, name=f"stage{stage + 1}_merging")(x)
            x = self._stage(x, stage, train)
            maps.append(x)
        return maps

    def _embed(self, x, train):
        """Returns the map of patches (B, H/P, W/P, width) of images (B, H, W, C)."""
        grid = padded_grid(x.shape[1:3], self.patch_size)
        x = pad_to_multiple(x, (self.patch_size, self.patch_size))
        x = PatchEmbedding(self.patch_size, self.width, self.dtype, name="patch_embedding")(x)
        x = layer_norm(EPSILON, self.dtype, "patch_norm")(x)
        if self.position in ("absolute", "both"):
            x = LearnedPositions(dtype=self.dtype, name="positions")(x)
        x = nn.Dropout(self.dropout)(x, deterministic=not train)
        return x.reshape(-1, *grid, self.width)

    def _stage(self, x, stage, train):
        """Returns the map after the blocks of a stage; they are regular and shifted in turn."""
        window, shift = fit_window(x.shape[1:3], self.window)
        shifts = [(0, 0), shift if self.shift else (0, 0)]
        masks = [shifted_window_mask(x.shape[1:3], window, s, self.shift_by) if any(s) else None for s in shifts]
        before, blocks = sum(self.depths[:stage]), sum(self.depths)
        relative = self.position in ("relative", "both")
        row = [
            EncoderBlock(
                num_heads=self.num_heads[stage],
                mlp_dim=int(self.mlp_ratio * x.shape[-1]),
                dropout=self.dropout,
                hidden_dropout=self.dropout,
                attention_dropout=self.attention_dropout,
                drop_path=self.drop_path * (before + i) / max(1, blocks - 1),
                activation="gelu",
                epsilon=EPSILON,
                attention_kernel=self.attention_kernel,
                attention_layer=partial(
                    WindowAttention, window=window, shift=shifts[i % 2], shift_by=self.shift_by, relative=relative
                ),
                kernel_init=self.kernel_init,
                dtype=self.dtype,
                name=f"stage{stage + 1}_block{i + 1}",
            )
            for i in range(self.depths[stage])
        ]
        return layers.run(row, x, masks=masks, remat=self.remat, scan=self.scan, train=train)


def _size(width, depths, window=7):
    """Heads of 32 channels, as in all of the paper's."""
    num_heads = tuple(width * 2**stage // 32 for stage in range(len(depths)))
    return dict(width=width, depths=depths, num_heads=num_heads, window=window)


def _small(width, depths, num_heads, window, **fields):
    """For images of 28 or 32 pixels: patches of 2x2."""
    return dict(patch_size=2, width=width, depths=depths, num_heads=num_heads, window=window, mlp_ratio=2.0, **fields)


SWIN_SIZES: dict[str, dict[str, Any]] = {
    "T": _size(96, (2, 2, 6, 2)),
    "S": _size(96, (2, 2, 18, 2)),
    "B": _size(128, (2, 2, 18, 2)),
    "L": _size(192, (2, 2, 18, 2)),
    "B-384": _size(128, (2, 2, 18, 2), window=12),  # for 384x384 pixels, as the next
    "L-384": _size(192, (2, 2, 18, 2), window=12),
    "28": _small(32, (2, 2, 2), (1, 2, 4), window=7, kernel_std=0.0),
    "32": _small(48, (2, 2, 2), (3, 6, 12), window=4, kernel_std=0.0),
    # github.com/aanna0701/SPT_LSA_ViT (Lee et al. 2021), for 32x32 pixels; drop_path 0.1 there
    "cifar": _small(96, (2, 6, 4), (3, 6, 12), window=4, position="both"),
}
