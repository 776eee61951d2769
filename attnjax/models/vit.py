"""Vision Transformer (Dosovitskiy et al. 2020)."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from attnjax.errors import UserError, nearest
from attnjax.nn import remat as layers
from attnjax.nn.attention import MultiHeadAttention
from attnjax.nn.blocks import EncoderBlock, layer_norm
from attnjax.nn.linear import Linear
from attnjax.nn.positions import LearnedPositions, LearnedPositions2D, RelativePositions
from attnjax.nn.windows import Pair

POOLS = ("token", "average")
# "learned": a table added to the patches; "learned_2d": one for rows and one for columns; "relative": biases on the
# attention logits. Appendix D.4 compares them, in table 8.
POSITIONS = ("none", "learned", "learned_2d", "relative")


def patch_grid(image_size: tuple[int, int], patch_size: int) -> tuple[int, int]:
    """Returns the rows and columns of patches; UserError if the image does not divide into whole patches."""
    height, width = image_size
    if height % patch_size or width % patch_size:
        raise UserError(
            f"image size {height}x{width} is not divisible by the patch size {patch_size}; "
            f"the nearest that is: {_nearest_multiple(height, patch_size)}x{_nearest_multiple(width, patch_size)}"
        )
    return height // patch_size, width // patch_size


def _nearest_multiple(length, patch_size):
    return max(1, round(length / patch_size)) * patch_size


class PatchEmbedding(nn.Module):
    """Cuts an image into patches and maps each to a token: (B, H, W, C) -> (B, H/P * W/P, features)."""

    patch_size: int
    features: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x):
        rows, columns = patch_grid(x.shape[1:3], self.patch_size)
        p = self.patch_size
        # One matrix product over cut-out patches; the kernel (P, P, C, D) is that of the equal strided convolution.
        x = x.reshape(x.shape[0], rows, p, columns, p, x.shape[-1]).transpose(0, 1, 3, 2, 4, 5)
        x = x.reshape(x.shape[0], rows * columns, p, p, x.shape[-1])
        init = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal", in_axis=(0, 1, 2), out_axis=3)
        return Linear(self.features, in_axes=3, kernel_init=init, dtype=self.dtype, name="projection")(x)


def prepend_class_token(module: nn.Module, x, init=nn.initializers.zeros):
    """Puts `module`'s parameter "class_token" before its tokens: (B, N, D) -> (B, 1 + N, D)."""
    token = module.param("class_token", init, (1, 1, x.shape[-1]), "float32")
    token = jnp.broadcast_to(token.astype(x.dtype), (x.shape[0], 1, x.shape[-1]))
    return jnp.concatenate([token, x], axis=1)


class GridAttention(MultiHeadAttention):
    """Self-attention of tokens that end in a grid of patches, with relative positions: (B, N, D) -> (B, N, features).

    A pair of patches has a learned bias for each head and distance along both axes; one with a class token has none.
    That is Swin's (Liu et al. 2021, section 3.2), with the whole grid for a window. In Dosovitskiy et al.'s (2020,
    appendix D.4) the distance is one-dimensional, along the sequence, and the bias is the product of the query and a
    vector learned for that distance. Where a class token is read, the last block's biases are without effect.
    """

    grid: Pair = (14, 14)

    def setup(self):
        super().setup()
        self.relative_positions = RelativePositions(self.num_heads)

    def __call__(self, x, *, mask=None, train: bool = False):
        bias = self.relative_positions(self.grid)
        before = x.shape[1] - bias.shape[-1]
        bias = jnp.pad(bias, ((0, 0), (0, 0), (before, 0), (before, 0)))
        return super().__call__(x, mask=mask, bias=bias, train=train)


class ViT(nn.Module):
    """Vision Transformer: (B, H, W, C) -> logits (B, num_classes) float32, or (B, width) if num_classes is 0.

    Parameter names follow the paper's figure 1; VIT_SIZES holds table 1's sizes and the smaller ones that followed.
    The image size is read from the input; tables learned at another size are resized by `nn.positions`.
    """

    num_classes: int
    patch_size: int = 16
    width: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_dim: int = 3072
    pool: str = "token"  # "token": a learned class token; "average": the mean over patches, no class token
    position: str = "learned"  # of POSITIONS
    position_std: float = 0.02  # of the tables added to the patches, at the start
    pre_logits: int = 0  # width of a tanh layer before the head; 0 for none
    dropout: float = 0.0
    attention_dropout: float = 0.0
    drop_path: float = 0.0  # of the last block; rises linearly from 0
    activation: str = "gelu_tanh"  # Google's; "gelu" for timm and Hugging Face
    epsilon: float = 1e-6  # of LayerNorm
    final_norm: bool = True
    attention_kernel: str = "auto"
    dtype: str = "float32"
    remat: str = "none"  # or "full", "dots": what of a block the backward pass computes again; see `nn.layers`
    scan: bool = False  # over the blocks, which are then compiled once; see `nn.layers`

    def setup(self):
        if self.pool not in POOLS:
            raise UserError(f"unknown pool '{self.pool}'. Known: {', '.join(POOLS)}")
        if self.position not in POSITIONS:
            raise UserError(f"unknown position '{self.position}' of vit, {nearest(self.position, POSITIONS)}")
        if self.pre_logits:
            self.hidden = Linear(self.pre_logits, dtype=self.dtype, name="pre_logits")
        self.head = Linear(self.num_classes, kernel_init=nn.initializers.zeros)

    def __call__(self, x, *, train: bool = False):
        x, _ = self.tokens(x, train=train)
        x = x[:, 0] if self.pool == "token" else x.mean(1)
        if self.pre_logits:
            x = nn.tanh(self.hidden(x))
        x = x.astype(jnp.float32)
        return self.head(x) if self.num_classes else x

    @nn.compact
    def tokens(self, x, *, train: bool = False) -> tuple[jax.Array, tuple[int, int]]:
        """Returns the last block's tokens (B, N, width), and the grid: they end in rows * columns patches."""
        grid = patch_grid(x.shape[1:3], self.patch_size)
        x = PatchEmbedding(self.patch_size, self.width, self.dtype, name="patch_embedding")(x)
        if self.pool == "token":
            x = prepend_class_token(self, x)
        if self.position == "learned":
            x = LearnedPositions(self.position_std, self.dtype, name="positions")(x)
        elif self.position == "learned_2d":
            x = LearnedPositions2D(self.position_std, self.dtype, name="positions")(x, grid)
        x = nn.Dropout(self.dropout)(x, deterministic=not train)
        relative = self.position == "relative"
        blocks = [
            EncoderBlock(
                num_heads=self.num_heads,
                mlp_dim=self.mlp_dim,
                dropout=self.dropout,
                hidden_dropout=self.dropout,
                attention_dropout=self.attention_dropout,
                drop_path=self.drop_path * i / max(1, self.depth - 1),
                activation=self.activation,
                epsilon=self.epsilon,
                attention_kernel=self.attention_kernel,
                attention_layer=partial(GridAttention, grid=grid) if relative else MultiHeadAttention,
                dtype=self.dtype,
                name=f"block{i}",
            )
            for i in range(self.depth)
        ]
        x = layers.run(blocks, x, remat=self.remat, scan=self.scan, train=train)
        if self.final_norm:
            x = layer_norm(self.epsilon, self.dtype, "final_norm")(x)
        return x, grid


def _size(patch_size, width, depth, num_heads):
    return dict(patch_size=patch_size, width=width, depth=depth, num_heads=num_heads, mlp_dim=4 * width)


VIT_SIZES: dict[str, dict[str, Any]] = {
    "Ti/16": _size(16, 192, 12, 3),
    "S/16": _size(16, 384, 12, 6),
    "S/32": _size(32, 384, 12, 6),
    "B/8": _size(8, 768, 12, 12),
    "B/16": _size(16, 768, 12, 12),
    "B/32": _size(32, 768, 12, 12),
    "L/16": _size(16, 1024, 24, 16),
    "L/32": _size(32, 1024, 24, 16),
    "H/14": _size(14, 1280, 32, 16),
}
