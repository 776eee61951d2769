"""Vision Transformer (Dosovitskiy et al. 2020)."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from attnjax.errors import UserError, check_choice
from attnjax.nn.blocks import BlockOptions, EncoderBlock
from attnjax.nn.dropout import Dropout
from attnjax.nn.linear import Linear
from attnjax.nn.positions import LearnedPositions, LearnedPositions2D
from attnjax.nn.remat import apply_blocks
from attnjax.nn.windows import Pair

POOLS = ("token", "average")
# "learned": a table added to the patches; "learned_2d": one table for rows and one for columns; "relative": biases on
# the attention logits. Appendix D.4 compares them in table 8, but its relative positions are one-dimensional, along the
# sequence, and its bias is the product of the query and a vector learned for the distance. Ours are Swin's, with the
# grid as the window; with pool="token" the last block's have no effect on the output.
POSITIONS = ("none", "learned", "learned_2d", "relative")


def patch_grid(image_size: Pair, patch_size: int) -> Pair:
    """Returns the rows and columns of patches; UserError if the image size is not divisible by the patch size."""
    height, width = image_size
    if height % patch_size or width % patch_size:
        nearest = "x".join(str(max(1, round(length / patch_size)) * patch_size) for length in image_size)
        wrong = f"image size {height}x{width} is not divisible by the patch size {patch_size}"
        raise UserError(f"{wrong}; the nearest that is: {nearest}")
    return height // patch_size, width // patch_size


def position_grids(image_size: Pair, config: Mapping[str, Any]) -> dict[str, Pair]:
    """Returns the path of the position table and its grid."""
    return {"params/positions/embedding": patch_grid(image_size, config["patch_size"])}


class PatchEmbedding(nn.Module):
    """Cuts an image into patches and projects each to a token: (B, H, W, C) -> (B, H/P * W/P, features)."""

    patch_size: int
    features: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x):
        rows, columns = patch_grid(x.shape[1:3], self.patch_size)
        p = self.patch_size
        # A matrix product over patches; its kernel (P, P, C, D) is that of the equivalent strided convolution.
        x = x.reshape(x.shape[0], rows, p, columns, p, x.shape[-1]).transpose(0, 1, 3, 2, 4, 5)
        x = x.reshape(x.shape[0], rows * columns, p, p, x.shape[-1])
        init = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal", in_axis=(0, 1, 2), out_axis=3)
        return Linear(self.features, in_axes=3, kernel_init=init, dtype=self.dtype, name="projection")(x)


def prepend_class_token(module: nn.Module, x, init=nn.initializers.zeros):
    """Prepends `module`'s parameter "class_token" to its tokens: (B, N, D) -> (B, 1 + N, D)."""
    token = module.param("class_token", init, (1, 1, x.shape[-1]), "float32")
    token = jnp.broadcast_to(token, (x.shape[0], 1, x.shape[-1])).astype(x.dtype)
    return jnp.concatenate([token, x], axis=1)


class ViT(nn.Module):
    """Vision Transformer: (B, H, W, C) -> logits (B, num_classes) float32, or (B, width) if num_classes is 0.

    Parameter names follow the paper's figure 1; VIT_SIZES has the sizes of table 1 and smaller ones published later.
    The image size is the input's; `nn.positions` resizes tables learned at another size.
    """

    num_classes: int
    patch_size: int = 16
    width: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_dim: int = 3072
    pool: str = "token"  # "token": a learned class token; "average": the mean over patches, no class token
    position: str = "learned"  # of POSITIONS
    position_std: float = 0.02  # of the initial tables added to the patches
    pre_logits: int = 0  # width of a tanh layer before the head; 0 for none
    dropout: float = 0.0
    attention_dropout: float = 0.0
    drop_path: float = 0.0  # of the last block; increases linearly from 0
    activation: str = "gelu_tanh"  # Google's; "gelu" for timm and Hugging Face
    epsilon: float = 1e-6  # of LayerNorm
    final_norm: bool = True
    attention_kernel: str = "auto"
    dtype: str = "float32"
    remat: str = "none"  # gradient checkpointing of each block: "none", "full" or "dots"; see `nn.remat`
    scan: bool = False  # over the blocks, so that one is compiled for all; see `nn.remat`

    def setup(self):
        check_choice("pool", self.pool, POOLS)
        check_choice("position of vit", self.position, POSITIONS)
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
        """Returns the last block's tokens (B, N, width), patches last, and their grid (rows, columns)."""
        grid = patch_grid(x.shape[1:3], self.patch_size)
        x = PatchEmbedding(self.patch_size, self.width, self.dtype, name="patch_embedding")(x)
        if self.pool == "token":
            x = prepend_class_token(self, x)
        if self.position == "learned":
            x = LearnedPositions(self.position_std, self.dtype, name="positions")(x)
        elif self.position == "learned_2d":
            x = LearnedPositions2D(self.position_std, self.dtype, name="positions")(x, grid)
        x = Dropout(self.dropout)(x, train=train)
        options = BlockOptions.of(self, hidden_dropout=self.dropout)
        blocks = [
            EncoderBlock(
                self.num_heads,
                self.mlp_dim,
                options,
                drop_path=self.drop_path * i / max(1, self.depth - 1),
                relative_grid=grid if self.position == "relative" else None,
                name=f"block{i}",
            )
            for i in range(self.depth)
        ]
        x = apply_blocks(blocks, x, remat=self.remat, scan=self.scan, train=train)
        if self.final_norm:
            x = options.layer_norm("final_norm")(x)
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
