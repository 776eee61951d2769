"""CrossViT (Chen, Fan & Panda 2021): two Vision Transformers with different patch sizes, joined by cross-attention.

In each stage both branches apply Transformer blocks; then each branch's class token attends to the other branch's
patches and returns to its own branch. The cost of this cross-attention is linear in the number of patches.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from attnjax.errors import UserError
from attnjax.models.vit import PatchEmbedding, patch_grid, prepend_class_token
from attnjax.nn.activations import activation
from attnjax.nn.blocks import BlockOptions, EncoderBlock
from attnjax.nn.dropout import Dropout, DropPath
from attnjax.nn.linear import Linear
from attnjax.nn.positions import LearnedPositions, bicubic_taps
from attnjax.nn.remat import apply_block, apply_blocks
from attnjax.nn.windows import Pair

OPTIONS = BlockOptions(activation="gelu", epsilon=1e-6)  # as in IBM's code and timm's


def branch_grids(image_size: Pair, patch_sizes: Sequence[int], image_scales: Sequence[float]) -> list[Pair]:
    """Returns the rows and columns of patches of each branch; UserError if an image size is not divisible."""
    grids = []
    for number, (patch_size, scale) in enumerate(zip(patch_sizes, image_scales, strict=False), start=1):
        try:
            grids.append(patch_grid(scaled(image_size, scale), patch_size))
        except UserError as error:
            raise UserError(f"branch {number} of crossvit sees images at {scale:.4g} of their size: {error}") from None
    return grids


def position_grids(image_size: Pair, config: Mapping[str, Any]) -> dict[str, Pair]:
    """Returns the path of each branch's position table and its grid."""
    grids = branch_grids(image_size, config["patch_sizes"], config["image_scales"])
    return {f"params/branch{i}/positions/embedding": grid for i, grid in enumerate(grids, start=1)}


def scaled(image_size: Pair, scale: float) -> Pair:
    """Returns the (height, width) at which a branch sees an image, rounded; timm truncates it."""
    height, width = image_size
    return round(height * scale), round(width * scale)


def resize_images(x, size: Pair):
    """Resizes images (B, H, W, C) to (B, *size, C) with torch's bicubic interpolation, as timm."""
    for axis, length in zip((1, 2), size, strict=True):
        if x.shape[axis] != length:
            taps, weights = bicubic_taps(x.shape[axis], length)
            shape = (-1, 1, 1) if axis == 1 else (-1, 1)  # along the axis
            # Four taps take a third of a matrix product's time on a CPU, and accelerators keep their full precision.
            x = sum(
                jnp.take(x, tap, axis) * weight.reshape(shape)
                for tap, weight in zip(taps.T, weights.T.astype(np.float32), strict=True)
            )
    return x


class Projection(nn.Module):
    """Projects a class token to the other branch's width: (B, 1, D) -> (B, 1, features) (f and g in figure 4)."""

    features: int
    options: BlockOptions = OPTIONS

    @nn.compact
    def __call__(self, x):
        options = self.options
        x = activation(options.activation)(options.layer_norm("norm")(x))
        return Linear(self.features, kernel_init=options.kernel_init, dtype=options.dtype, name="linear")(x)


class Fusion(nn.Module):
    """Cross-attention of one branch's class token to the other's patches, without an MLP (section 3.3, figure 4).

    Tokens (B, N, D) of the branch and (B, M, E) of the other -> the branch's new class token (B, 1, D). The residual
    connection has the other branch's width, between the two projections.
    """

    num_heads: int
    options: BlockOptions = OPTIONS
    drop_path: float = 0.0

    @nn.compact
    def __call__(self, own, other, *, train: bool):
        options, width = self.options, other.shape[-1]
        token = Projection(width, options, name="project")(own[:, :1])

        y = jnp.concatenate([token, other[:, 1:]], axis=1)
        y = options.layer_norm("norm")(y)
        y = options.attention(self.num_heads, width, name="attention")(y[:, :1], y, train=train)
        y = Dropout(options.dropout)(y, train=train)
        token = token + DropPath(self.drop_path)(y, train=train)

        return Projection(own.shape[-1], options, name="project_back")(token)


class BranchEmbedding(nn.Module):
    """Embeds a branch's image: (B, H, W, C) -> (B, 1 + patches, features), class token first."""

    patch_size: int
    features: int
    position_std: float = 0.02
    dropout: float = 0.0
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x, *, train: bool):
        x = PatchEmbedding(self.patch_size, self.features, self.dtype, name="patch_embedding")(x)
        x = prepend_class_token(self, x, nn.initializers.normal(0.02))
        x = LearnedPositions(self.position_std, self.dtype, name="positions")(x)
        return Dropout(self.dropout)(x, train=train)


class CrossViT(nn.Module):
    """CrossViT: (B, H, W, C) -> logits (B, num_classes) float32, or both class tokens (B, sum of widths) if it is 0.

    CROSSVIT_SIZES has the paper's sizes (table 1) and small ones. In fields of two values the first is for the branch
    with fine patches, the second for that with coarse ones. Each branch sees the image at its scale (`resize_images`),
    which must be divisible by its patch size: the published sizes need multiples of 120 pixels, and the second branch
    sees 240x240 as 224x224.
    """

    num_classes: int
    patch_sizes: Sequence[int] = (12, 16)
    image_scales: Sequence[float] = (1.0, 224 / 240)
    widths: Sequence[int] = (192, 384)
    stages: int = 3  # K in the paper
    depths: Sequence[int] = (1, 4)  # blocks per stage: N and M in the paper, whose L is 1
    num_heads: int = 6  # of both branches and of the cross-attention
    mlp_ratio: float = 4.0  # hidden units of the MLP per channel
    # Of the initial kernels, except the patch projections'. The normal distribution of timm and IBM is truncated only
    # at 2, a hundred deviations. 0: Xavier uniform, better for small models.
    kernel_std: float = 0.02
    position_std: float = 0.02  # of the initial tables
    dropout: float = 0.0
    attention_dropout: float = 0.0
    drop_path: float = 0.0  # of each branch's last block and the last fusion; increases linearly from 0
    attention_kernel: str = "auto"
    dtype: str = "float32"
    remat: str = "none"  # gradient checkpointing of each block: "none", "full" or "dots"; see `nn.remat`
    scan: bool = False  # over a branch's blocks in a stage, so that one is compiled for all; see `nn.remat`

    def setup(self):
        for field in ("patch_sizes", "image_scales", "widths", "depths"):
            if len(value := getattr(self, field)) != 2:
                raise UserError(f"crossvit has {field} {value}: it needs two entries, one per branch")
        if min(self.image_scales) <= 0:
            raise UserError(f"crossvit has image_scales {self.image_scales}: both should be positive")
        if self.stages < 1 or max(self.depths) < 1 or min(self.depths) < 0:
            raise UserError(f"crossvit needs at least 1 stage and 1 block in it, got {self.stages} and {self.depths}")
        self.kernel_init = nn.initializers.normal(self.kernel_std) if self.kernel_std else None
        common = dict(activation=OPTIONS.activation, epsilon=OPTIONS.epsilon, kernel_init=self.kernel_init)
        self.options = BlockOptions.of(self, hidden_dropout=self.dropout, **common)

    @nn.compact
    def __call__(self, x, *, train: bool = False):
        branches = self._embed(x, train)
        for stage in range(self.stages):
            branches = self._stage(branches, stage, train)
        outputs = []
        for number, x in enumerate(branches, start=1):
            x = self.options.layer_norm(f"final_norm{number}")(x[:, 0]).astype(jnp.float32)
            if self.num_classes:
                x = Linear(self.num_classes, kernel_init=self.kernel_init, name=f"head{number}")(x)
            outputs.append(x)
        return sum(outputs) / len(outputs) if self.num_classes else jnp.concatenate(outputs, axis=-1)

    def _embed(self, image, train):
        """Returns the tokens of both branches, [(B, 1 + N, D), (B, 1 + M, E)]."""
        image_size = image.shape[1:3]
        branch_grids(image_size, self.patch_sizes, self.image_scales)  # raises UserError
        branches = []
        for i in range(2):
            options = (self.position_std, self.dropout, self.dtype)
            embedding = BranchEmbedding(self.patch_sizes[i], self.widths[i], *options, name=f"branch{i + 1}")
            seen = resize_images(image, scaled(image_size, self.image_scales[i]))
            branches.append(embedding(seen, train=train))
        return branches

    def _stage(self, branches, stage, train):
        """Returns the tokens of both branches after their blocks and the fusion."""
        depth = max(self.depths)
        rates = [self.drop_path * (stage * depth + i) / max(1, self.stages * depth - 1) for i in range(depth)]
        branches = [
            self._blocks(x, f"stage{stage + 1}_branch{number}", rates[:blocks], train)
            for number, (x, blocks) in enumerate(zip(branches, self.depths, strict=True), start=1)
        ]
        fused = []
        for number, (own, other) in enumerate([branches, branches[::-1]], start=1):
            fusion = Fusion(self.num_heads, self.options, rates[-1], name=f"stage{stage + 1}_fusion{number}")
            token = apply_block(fusion, own, other, remat=self.remat, train=train)
            fused.append(jnp.concatenate([token, own[:, 1:]], axis=1))
        return fused

    def _blocks(self, x, name, rates, train):
        mlp_dim = int(self.mlp_ratio * x.shape[-1])
        blocks = [
            EncoderBlock(self.num_heads, mlp_dim, self.options, drop_path=rate, name=f"{name}_block{i}")
            for i, rate in enumerate(rates, start=1)
        ]
        return apply_blocks(blocks, x, remat=self.remat, scan=self.scan, train=train)


def _size(width, blocks, num_heads, mlp_ratio):
    """Returns a size of the paper's table 1, for 240x240 pixels."""
    views = dict(patch_sizes=(12, 16), image_scales=(1.0, 224 / 240))
    return dict(widths=(width, 2 * width), depths=(1, blocks), num_heads=num_heads, mlp_ratio=mlp_ratio, **views)


def _mini(patch_sizes):
    shape = dict(image_scales=(1.0, 1.0), widths=(48, 96), stages=2, depths=(1, 2))
    return dict(patch_sizes=patch_sizes, num_heads=3, mlp_ratio=2.0, kernel_std=0.0, **shape)


CROSSVIT_SIZES: dict[str, dict[str, Any]] = {
    "tiny": _size(96, 4, 3, 4.0),
    "small": _size(192, 4, 6, 4.0),
    "base": _size(384, 4, 12, 4.0),
    "9": _size(128, 3, 4, 3.0),
    "15": _size(192, 5, 6, 3.0),
    "18": _size(224, 6, 7, 3.0),
    "mini-28": _mini((4, 7)),  # for 28x28 pixels
    "mini-32": _mini((4, 8)),  # for 32x32 pixels
}
