"""Swin Transformer (Liu et al. 2021).

A pyramid of feature maps, as in a convolutional network: each stage halves height and width and doubles the channels.
Attention is inside windows, which every second block shifts; `attnjax/nn/windows.py` explains how.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from attnjax.errors import UserError, check_choice
from attnjax.models.vit import PatchEmbedding
from attnjax.nn.attention import MultiHeadAttention
from attnjax.nn.blocks import BlockOptions
from attnjax.nn.dropout import Dropout, DropPath
from attnjax.nn.linear import Linear
from attnjax.nn.norm import LayerNorm
from attnjax.nn.positions import LearnedPositions
from attnjax.nn.remat import apply_blocks
from attnjax.nn.windows import (
    SHIFT_RULES,
    SHIFTS,
    Pair,
    fit_window,
    merge,
    pad_to_multiple,
    partition,
    shifted_window_mask,
)

EPSILON = 1e-5  # of every LayerNorm, as in Microsoft's code

# "absolute": a table added to the patches; "relative": biases on the attention logits. Table 4 compares them.
POSITIONS = ("none", "absolute", "relative", "both")


def padded_grid(image_size: Pair, patch_size: int) -> Pair:
    """Returns the rows and columns of patches of an image, which is padded to whole patches."""
    height, width = image_size
    return -(-height // patch_size), -(-width // patch_size)


def maps(image_size: Pair, patch_size: int, stages: int) -> list[Pair]:
    """Returns the rows and columns of the map of each stage."""
    rows, columns = padded_grid(image_size, patch_size)
    return [(-(-rows // 2**stage), -(-columns // 2**stage)) for stage in range(stages)]


def position_grids(image_size: Pair, config: Mapping[str, Any]) -> dict[str, Pair]:
    """Returns the path of the table of absolute positions and its grid."""
    return {"params/positions/embedding": padded_grid(image_size, config["patch_size"])}


class WindowAttention(nn.Module):
    """Self-attention inside the windows of a map, shifted or not: (B, H, W, C) -> (B, H, W, features) (section 3.2).

    `mask` is `shifted_window_mask` of the map, (windows, N, N), or None without a shift. The parameters are those of
    `attention`, with the same names.
    """

    attention: MultiHeadAttention
    window: Pair
    shift: Pair = (0, 0)
    shift_by: str = "cyclic"

    def setup(self):
        nn.share_scope(self, self.attention)

    def __call__(self, x, *, mask=None, train: bool = False):
        height, width = x.shape[1:3]
        arrange, restore = SHIFTS[self.shift_by]
        # Padding to whole windows comes before the shift, as in torchvision and Hugging Face. timm rolls first, so that
        # rows from the other end come before the padding, and the mask treats them as neighbours. Tokens attend to
        # padding as to any token of their region.
        y = arrange(pad_to_multiple(x, self.window), self.window, self.shift)
        size = y.shape[1:3]
        if mask is not None:
            mask = mask[:, None]
        y = self.attention(partition(y, self.window), mask=mask, train=train)
        y = restore(merge(y, self.window, size), self.window, self.shift)
        return y[:, :height, :width]


class SwinBlock(nn.Module):
    """Pre-norm block on a map (B, H, W, C): attention inside windows, and MLP (figure 3b)."""

    num_heads: int
    mlp_dim: int
    window: Pair
    shift: Pair = (0, 0)
    shift_by: str = "cyclic"
    relative_grid: Pair | None = None  # of the attention's relative positions
    options: BlockOptions = BlockOptions()
    drop_path: float | jax.Array = 0.0

    @nn.compact
    def __call__(self, x, *, mask=None, train: bool):
        options, grid = self.options, self.relative_grid
        inside = options.attention(self.num_heads, x.shape[-1], relative_grid=grid, name="attention")
        attention = WindowAttention(inside, self.window, self.shift, self.shift_by)

        y = options.layer_norm("norm1")(x)
        y = attention(y, mask=mask, train=train)
        y = Dropout(options.dropout)(y, train=train)
        x = x + DropPath(self.drop_path)(y, train=train)

        y = options.layer_norm("norm2")(x)
        y = options.mlp(self.mlp_dim, name="mlp")(y, train=train)
        y = Dropout(options.dropout)(y, train=train)
        return x + DropPath(self.drop_path)(y, train=train)


class PatchMerging(nn.Module):
    """Merges 2x2 tokens into one: (B, H, W, C) -> (B, H/2, W/2, 2C), sizes rounded up (section 3.1)."""

    kernel_init: Callable | None = None
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x):
        x = pad_to_multiple(x, (2, 2))
        batch, height, width, channels = x.shape
        x = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
        x = x.transpose(0, 1, 3, 4, 2, 5)  # published weights have the left column of the 2x2 tokens first
        x = x.reshape(batch, height // 2, width // 2, 4 * channels)
        x = LayerNorm(EPSILON, self.dtype, name="norm")(x)
        options = dict(use_bias=False, kernel_init=self.kernel_init, dtype=self.dtype)
        return Linear(2 * channels, **options, name="reduction")(x)


class Swin(nn.Module):
    """Swin Transformer: (B, H, W, C) -> logits (B, num_classes) float32, or (B, width of the last map) if it is 0.

    SWIN_SIZES has the paper's sizes (section 3.3) and small ones. Images may have any size: zeros at the bottom and
    right pad them to whole patches, windows and 2x2 tokens. On a map smaller than the window, the window and its table
    of relative positions shrink to the map.
    """

    num_classes: int
    patch_size: int = 4
    width: int = 96  # of the first stage; doubles with each stage
    depths: Sequence[int] = (2, 2, 6, 2)  # blocks per stage
    num_heads: Sequence[int] = (3, 6, 12, 24)  # per stage
    mlp_ratio: float = 4.0  # hidden units of the MLP per channel
    window: int = 7
    shift: bool = True  # in every second block; table 4
    shift_by: str = "cyclic"  # or "padding", which computes the same with more windows; section 3.2
    # Which maps shift: "per_axis" as in timm, or "shorter_side" as in Microsoft's and Hugging Face's weights. They
    # differ for maps that are not square and, along an axis, no longer than the window; see `nn.windows.fit_window`.
    shift_rule: str = "per_axis"
    position: str = "relative"  # of POSITIONS; table 4
    # Of the initial kernels, except the patch projection's, whose scale the LayerNorm after it removes. Microsoft's
    # normal distribution is truncated only at 2, a hundred deviations. 0: Xavier uniform, better for small models.
    kernel_std: float = 0.02
    dropout: float = 0.0
    attention_dropout: float = 0.0
    drop_path: float = 0.0  # of the last block; increases linearly from 0
    attention_kernel: str = "auto"
    dtype: str = "float32"
    remat: str = "none"  # gradient checkpointing of each block: "none", "full" or "dots"; see `nn.remat`
    scan: bool = False  # over a stage's pairs of blocks, so that one pair is compiled for all; see `nn.remat`

    def setup(self):
        check_choice("shift_by of swin", self.shift_by, SHIFTS)
        check_choice("shift_rule of swin", self.shift_rule, SHIFT_RULES)
        check_choice("position of swin", self.position, POSITIONS)
        if len(self.depths) != len(self.num_heads):
            raise UserError(
                f"swin has depths {self.depths} but num_heads {self.num_heads}: both need one entry per stage"
            )
        if self.window < 1:
            raise UserError(f"swin needs a window of at least 1 token, got {self.window}")
        self.final_norm = LayerNorm(EPSILON, self.dtype)
        self.kernel_init = nn.initializers.normal(self.kernel_std) if self.kernel_std else None
        self.head = Linear(self.num_classes, kernel_init=self.kernel_init)

    def __call__(self, x, *, train: bool = False):
        x, _ = self.tokens(x, train=train)
        x = x.astype(jnp.float32).mean(1)
        return self.head(x) if self.num_classes else x

    def tokens(self, x, *, train: bool = False) -> tuple[jax.Array, tuple[int, int]]:
        """Returns the last map, after its LayerNorm, as tokens (B, H * W, C) and the grid (H, W)."""
        x = self.final_norm(self.features(x, train=train)[-1])
        return x.reshape(x.shape[0], -1, x.shape[-1]), x.shape[1:3]

    @nn.compact
    def features(self, x, *, train: bool = False) -> list[jax.Array]:
        """Returns the map at the end of each stage, without a final LayerNorm, for images (B, H, W, C).

        Map s = 0, 1, ... is (B, H/d, W/d, width * 2**s) in `dtype`, with d = patch_size * 2**s and sizes rounded up.
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
        x = LayerNorm(EPSILON, self.dtype, name="patch_norm")(x)
        if self.position in ("absolute", "both"):
            x = LearnedPositions(dtype=self.dtype, name="positions")(x)
        x = Dropout(self.dropout)(x, train=train)
        return x.reshape(-1, *grid, self.width)

    def _stage(self, x, stage, train):
        """Returns the map after the blocks of a stage, alternately regular and shifted."""
        window, shift = fit_window(x.shape[1:3], self.window, self.shift_rule)
        shifts = [(0, 0), shift if self.shift else (0, 0)]
        masks = [shifted_window_mask(x.shape[1:3], window, s, self.shift_by) if any(s) else None for s in shifts]
        before, last = sum(self.depths[:stage]), sum(self.depths) - 1
        common = dict(hidden_dropout=self.dropout, kernel_init=self.kernel_init)
        options = BlockOptions.of(self, activation="gelu", epsilon=EPSILON, **common)
        blocks = [
            SwinBlock(
                self.num_heads[stage],
                int(self.mlp_ratio * x.shape[-1]),
                window,
                shifts[i % 2],
                self.shift_by,
                relative_grid=window if self.position in ("relative", "both") else None,
                options=options,
                drop_path=self.drop_path * (before + i) / max(1, last),
                name=f"stage{stage + 1}_block{i + 1}",
            )
            for i in range(self.depths[stage])
        ]
        return apply_blocks(blocks, x, masks=masks, remat=self.remat, scan=self.scan, train=train)


def _size(width, depths, window=7):
    """Returns a size with heads of 32 channels, as all of the paper's."""
    num_heads = tuple(width * 2**stage // 32 for stage in range(len(depths)))
    return dict(width=width, depths=depths, num_heads=num_heads, window=window)


def _small(width, depths, num_heads, window, **fields):
    """Returns a size for images of 28 or 32 pixels: patches of 2x2."""
    return dict(patch_size=2, width=width, depths=depths, num_heads=num_heads, window=window, mlp_ratio=2.0, **fields)


SWIN_SIZES: dict[str, dict[str, Any]] = {
    "T": _size(96, (2, 2, 6, 2)),
    "S": _size(96, (2, 2, 18, 2)),
    "B": _size(128, (2, 2, 18, 2)),
    "L": _size(192, (2, 2, 18, 2)),
    "B-384": _size(128, (2, 2, 18, 2), window=12),  # for 384x384 pixels, as the next one
    "L-384": _size(192, (2, 2, 18, 2), window=12),
    "28": _small(32, (2, 2, 2), (1, 2, 4), window=7, kernel_std=0.0),
    "32": _small(48, (2, 2, 2), (3, 6, 12), window=4, kernel_std=0.0),
    # github.com/aanna0701/SPT_LSA_ViT (Lee et al. 2021), for 32x32 pixels; drop_path 0.1 there
    "cifar": _small(96, (2, 6, 4), (3, 6, 12), window=4, position="both"),
}
