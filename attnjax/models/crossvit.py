"""CrossViT (Chen, Fan & Panda 2021): two Vision Transformers of different patches, which exchange their class tokens.

A stage is some Transformer blocks in either branch, then a cross-attention each way: the class token of one branch
reads the patches of the other, and goes back to its own. So the cost of the exchange is linear in the patches.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from attnjax.errors import UserError
from attnjax.models.vit import PatchEmbedding, patch_grid, prepend_class_token
from attnjax.nn import remat as layers
from attnjax.nn.attention import MultiHeadAttention
from attnjax.nn.blocks import DropPath, EncoderBlock, activation, layer_norm
from attnjax.nn.linear import Linear
from attnjax.nn.positions import LearnedPositions, bicubic_taps

ACTIVATION, EPSILON = "gelu", 1e-6  # of IBM's code and timm's

Pair = tuple[int, int]


def branch_grids(image_size: Pair, patch_sizes: Sequence[int], image_scales: Sequence[float]) -> list[Pair]:
    """Returns the grid of patches (rows, columns) of each branch; UserError if there is one not of whole patches."""
    grids = []
    for number, (patch_size, scale) in enumerate(zip(patch_sizes, image_scales, strict=True), start=1):
        try:
            grids.append(patch_grid(scaled(image_size, scale), patch_size))
        except UserError as error:
            raise UserError(f"branch {number} of crossvit sees images at {scale:.4g} of their size: {error}") from None
    return grids


def scaled(image_size: Pair, scale: float) -> Pair:
    """Returns the (height, width) at which a branch sees an image; it is rounded, where timm truncates."""
    return tuple(round(length * scale) for length in image_size)


def resize_images(x, size: Pair):
    """Returns images (B, H, W, C) at another size, (B, *size, C), by torch's bicubic interpolation, as timm's."""
    for axis, length in zip((1, 2), size, strict=True):
        if x.shape[axis] != length:
            taps, weights = bicubic_taps(x.shape[axis], length)
            shape = (-1, 1, 1) if axis == 1 else (-1, 1)  # along the axis
            # Four taps, not a matrix product: a third of its time on a CPU, and not shortened to fewer bits elsewhere.
            x = sum(
                jnp.take(x, tap, axis) * weight.reshape(shape)
                for tap, weight in zip(taps.T, weights.T.astype(np.float32), strict=True)
            )
    return x


class Projection(nn.Module):
    """Takes a class token to the width of another branch: (B, 1, D) -> (B, 1, features) (f and g in figure 4)."""

    features: int
    kernel_init: Callable | None = None
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x):
        x = activation(ACTIVATION)(layer_norm(EPSILON, self.dtype, "norm")(x))
        return Linear(self.features, kernel_init=self.kernel_init, dtype=self.dtype, name="linear")(x)


class Fusion(nn.Module):
    """Cross-attention of one branch's class token with the other's patches (section 3.3, figure 4; no MLP follows).

    Tokens (B, N, D) of the branch and (B, M, E) of the other -> the branch's new class token (B, 1, D). The old one
    comes only by way of the other's width: the residual connection lies inside of the two projections.
    """

    num_heads: int
    dropout: float = 0.0
    attention_dropout: float = 0.0
    drop_path: float = 0.0
    attention_kernel: str = "auto"
    kernel_init: Callable | None = None
    dtype: str = "float32"

    @nn.compact
    def __call__(self, own, other, *, train: bool):
        width = other.shape[-1]
        token = Projection(width, self.kernel_init, self.dtype, name="project")(own[:, :1])
        y = jnp.concatenate([token, other[:, 1:]], axis=1)
        y = layer_norm(EPSILON, self.dtype, "norm")(y)
        y = MultiHeadAttention(
            self.num_heads,
            width,
            dropout=self.attention_dropout,
            kernel=self.attention_kernel,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            name="attention",
        )(y[:, :1], y, train=train)
        y = nn.Dropout(self.dropout)(y, deterministic=not train)
        token = token + DropPath(self.drop_path)(y, train=train)
        return Projection(own.shape[-1], self.kernel_init, self.dtype, name="project_back")(token)


class BranchEmbedding(nn.Module):
    """Makes tokens of the image that a branch sees: (B, H, W, C) -> (B, 1 + patches, features), class token first."""

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
        return nn.Dropout(self.dropout)(x, deterministic=not train)


class CrossViT(nn.Module):
    """CrossViT: (B, H, W, C) -> logits (B, num_classes) float32, or both class tokens (B, sum of widths) if it is 0.

    CROSSVIT_SIZES holds the paper's (table 1) and small ones. Of two values the first is for the branch of fine
    patches, the second for that of coarse ones. Each branch sees the image at its scale (`resize_images`), where it
    needs whole patches: of the published sizes the second sees 240x240 pixels at 224x224; other multiples of 120 do.
    """

    num_classes: int
    patch_sizes: Sequence[int] = (12, 16)
    image_scales: Sequence[float] = (1.0, 224 / 240)
    widths: Sequence[int] = (192, 384)
    stages: int = 3  # K in the paper
    depths: Sequence[int] = (1, 4)  # blocks of a stage: N and M in the paper, whose L is 1
    num_heads: int = 6  # in both branches and between them
    mlp_ratio: float = 4.0  # hidden units of the MLP per channel
    # Of the kernels at the start, but the patches'. timm's and IBM's normal distribution is truncated, but at 2: a
    # hundred deviations. 0: Xavier's, which goes by the width and suits small models.
    kernel_std: float = 0.02
    position_std: float = 0.02  # of the tables at the start
    dropout: float = 0.0
    attention_dropout: float = 0.0
    drop_path: float = 0.0  # of the last block of either branch and the last exchange; rises linearly from 0
    attention_kernel: str = "auto"
    dtype: str = "float32"
    remat: str = "none"  # or "full", "dots": what of a block the backward pass computes again; see `nn.layers`
    scan: bool = False  # over the blocks of a stage, which are then compiled once; see `nn.layers`

    def setup(self):
        for field in ("patch_sizes", "image_scales", "widths", "depths"):
            if len(value := getattr(self, field)) != 2:
                raise UserError(f"crossvit has {field} {value}: it should be two, one for each branch")
        if min(self.image_scales) <= 0:
            raise UserError(f"crossvit has image_scales {self.image_scales}: both should be positive")
        if self.stages < 1 or max(self.depths) < 1 or min(self.depths) < 0:
            raise UserError(f"crossvit needs at least 1 stage and 1 block in it, got {self.stages} and {self.depths}")
        self.kernel_init = nn.initializers.normal(self.kernel_std) if self.kernel_std else None

    @nn.compact
    def __call__(self, x, *, train: bool = False):
        branches = self._embed(x, train)
        for stage in range(self.stages):
            branches = self._stage(branches, stage, train)
        outputs = []
        for number, x in enumerate(branches, start=1):
            x = layer_norm(EPSILON, self.dtype, f"final_norm{number}")(x[:, 0]).astype(jnp.float32)
            if self.num_classes:
                x = Linear(self.num_classes, kernel_init=self.kernel_init, name=f"head{number}")(x)
            outputs.append(x)
        return sum(outputs) / len(outputs) if self.num_classes else jnp.concatenate(outputs, axis=-1)

    def _embed(self, image, train):
        """Returns the tokens of either branch, [(B, 1 + N, D), (B, 1 + M, E)]."""
        image_size = image.shape[1:3]
        branch_grids(image_size, self.patch_sizes, self.image_scales)  # says what is wrong, if anything
        branches = []
        for i in range(2):
            embedding = BranchEmbedding(
                self.patch_sizes[i],
                self.widths[i],
                self.position_std,
                self.dropout,
                self.dtype,
                name=f"branch{i + 1}",
            )
            seen = resize_images(image, scaled(image_size, self.image_scales[i]))
            branches.append(embedding(seen, train=train))
        return branches

    def _stage(self, branches, stage, train):
        """Returns the tokens of either branch after their blocks and the exchange."""
        depth = max(self.depths)
        rates = [self.drop_path * (stage * depth + i) / max(1, self.stages * depth - 1) for i in range(depth)]
        shared = dict(
            num_heads=self.num_heads,
            dropout=self.dropout,
            attention_dropout=self.attention_dropout,
            attention_kernel=self.attention_kernel,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
        )
        after = []
        for number, (x, blocks) in enumerate(zip(branches, self.depths, strict=True), start=1):
            row = [
                EncoderBlock(
                    mlp_dim=int(self.mlp_ratio * x.shape[-1]),
                    hidden_dropout=self.dropout,
                    drop_path=rates[i],
                    activation=ACTIVATION,
                    epsilon=EPSILON,
                    name=f"stage{stage + 1}_branch{number}_block{i + 1}",
                    **shared,
                )
                for i in range(blocks)
            ]
            after.append(layers.run(row, x, remat=self.remat, scan=self.scan, train=train))
        exchanged = []
        for number, (own, other) in enumerate([after, after[::-1]], start=1):
            fusion = Fusion(drop_path=rates[-1], name=f"stage{stage + 1}_fusion{number}", **shared)
            token = layers.call(fusion, own, other, remat=self.remat, train=train)
            exchanged.append(jnp.concatenate([token, own[:, 1:]], axis=1))
        return exchanged


def _size(width, blocks, num_heads, mlp_ratio):
    """Table 1 of the paper; for 240x240 pixels."""
    return dict(
        patch_sizes=(12, 16),
        image_scales=(1.0, 224 / 240),
        widths=(width, 2 * width),
        depths=(1, blocks),
        num_heads=num_heads,
        mlp_ratio=mlp_ratio,
    )


def _mini(patch_sizes):
    return dict(
        patch_sizes=patch_sizes,
        image_scales=(1.0, 1.0),
        widths=(48, 96),
        stages=2,
        depths=(1, 2),
        num_heads=3,
        mlp_ratio=2.0,
        kernel_std=0.0,
    )


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
