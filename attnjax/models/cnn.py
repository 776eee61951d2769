"""Convolutional networks: LeNet-5 (LeCun et al. 1998) and ResNet (He et al. 2015)."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from attnjax.errors import UserError, check_choice
from attnjax.nn.activations import activation
from attnjax.nn.norm import BatchNorm
from attnjax.nn.pooling import pool
from attnjax.nn.remat import apply_block


class LeNet(nn.Module):
    """LeNet-5: (B, 32, 32, C) -> logits (B, num_classes); 61,706 parameters for one channel and ten classes.

    Layers: C1 6@5x5, S2, C3 16@5x5 on all maps of S2, S4, C5 120@5x5, F6 84, output.
    """

    num_classes: int
    features: Sequence[int] = (6, 16, 120)
    hidden: int = 84
    pooling: str = "average"
    activation: str = "tanh"
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x, *, train: bool = False):
        if min(x.shape[1:3]) < 32:
            raise UserError(f"LeNet-5 needs images of at least 32x32 pixels, got {x.shape[1]}x{x.shape[2]}")
        act = activation(self.activation)
        last = len(self.features) - 1
        for i, features in enumerate(self.features):
            x = act(nn.Conv(features, (5, 5), padding="VALID", dtype=self.dtype, name=f"conv{i + 1}")(x))
            if i < last:
                x = pool(x, self.pooling, window=2, stride=2)
        x = act(nn.Dense(self.hidden, dtype=self.dtype, name="fc")(x.reshape(x.shape[0], -1)))
        return nn.Dense(self.num_classes, name="head")(x)


def conv(features: int, window: int, stride: int, dtype: str, name: str) -> nn.Conv:
    """Returns a convolution without bias and with symmetric padding; "SAME" would shift the grid with stride 2."""
    return nn.Conv(
        features,
        (window, window),
        strides=(stride, stride),
        padding=[(window // 2, window // 2)] * 2,
        use_bias=False,
        kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
        dtype=dtype,
        name=name,
    )


def pad_shortcut(x, features: int, stride: int):
    """Returns the shortcut of He et al.'s option A, without parameters: subsamples and pads channels with zeros."""
    x = jax.lax.slice(x, (0, 0, 0, 0), x.shape, (1, stride, stride, 1))
    before = (features - x.shape[-1]) // 2
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (before, features - x.shape[-1] - before)))


class ResidualBlock(nn.Module):
    """Residual block with 3x3-3x3 convolutions, or 1x1-3x3-1x1 if `bottleneck` (stride in the 3x3, as torchvision)."""

    features: int  # of the output
    stride: int
    bottleneck: bool
    project: bool  # option B: a 1x1 convolution on the shortcut where the shape changes; else option A
    dtype: str

    @nn.compact
    def __call__(self, x, *, train: bool):
        def norm(name, x):
            return BatchNorm(self.dtype, name=name)(x, train=train)

        if self.bottleneck:
            inner = self.features // 4
            layers = [(inner, 1, 1), (inner, 3, self.stride), (self.features, 1, 1)]
        else:
            layers = [(self.features, 3, self.stride), (self.features, 3, 1)]
        y = x
        for i, (features, window, stride) in enumerate(layers, start=1):
            y = norm(f"norm{i}", conv(features, window, stride, self.dtype, f"conv{i}")(y))
            y = nn.relu(y) if i < len(layers) else y
        if x.shape != y.shape and self.project:
            x = norm("shortcut_norm", conv(self.features, 1, self.stride, self.dtype, "shortcut")(x))
        elif x.shape != y.shape:
            x = pad_shortcut(x, self.features, self.stride)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """ResNet: (B, H, W, C) -> logits (B, num_classes) float32, or (B, features[-1]) if num_classes is 0.

    The collection "batch_stats" has the running statistics of batch norm. RESNET_SIZES has the paper's sizes: "cifar20"
    to "cifar110" (section 4.2, option A) and "18" to "152" (table 1).
    """

    num_classes: int
    blocks: Sequence[int]  # per stage
    features: Sequence[int]  # per stage
    bottleneck: bool = False
    stem: str = "cifar"  # "cifar": 3x3 convolution; "imagenet": 7x7 with stride 2, then 3x3 pooling with stride 2
    project: bool = False
    stem_pooling: str = "max"
    dtype: str = "float32"
    remat: str = "none"  # gradient checkpointing of each block: "none", "full" or "dots"; see `nn.remat`

    def setup(self):
        self.head = nn.Dense(self.num_classes)

    def __call__(self, x, *, train: bool = False):
        x = self.map(x, train=train).astype(jnp.float32).mean((1, 2))
        return self.head(x) if self.num_classes else x

    def tokens(self, x, *, train: bool = False) -> tuple[jax.Array, tuple[int, int]]:
        """Returns the last map's positions as tokens (B, H * W, C) and the grid (H, W)."""
        x = self.map(x, train=train)
        return x.reshape(x.shape[0], -1, x.shape[-1]), x.shape[1:3]

    @nn.compact
    def map(self, x, *, train: bool = False):
        """Returns the last stage's map (B, H, W, C), in `dtype`."""
        check_choice("stem", self.stem, ("cifar", "imagenet"))
        features, window, stride = (self.features[0], 3, 1) if self.stem == "cifar" else (64, 7, 2)
        x = conv(features, window, stride, self.dtype, "stem")(x)
        x = nn.relu(BatchNorm(self.dtype, name="stem_norm")(x, train=train))
        if self.stem == "imagenet":
            x = pool(x, self.stem_pooling, window=3, stride=2, padding=1)
        for stage, (blocks, features) in enumerate(zip(self.blocks, self.features, strict=True)):
            for i in range(blocks):
                stride = 2 if stage > 0 and i == 0 else 1
                name = f"stage{stage + 1}_block{i + 1}"
                block = ResidualBlock(features, stride, self.bottleneck, self.project, self.dtype, name=name)
                x = apply_block(block, x, remat=self.remat, train=train)
        return x


def _cifar(depth):
    return dict(blocks=((depth - 2) // 6,) * 3, features=(16, 32, 64), stem="cifar", project=False)


def _imagenet(blocks, bottleneck):
    features = (256, 512, 1024, 2048) if bottleneck else (64, 128, 256, 512)
    return dict(blocks=blocks, features=features, bottleneck=bottleneck, stem="imagenet", project=True)


RESNET_SIZES: dict[str, dict[str, Any]] = {
    **{f"cifar{depth}": _cifar(depth) for depth in (8, 20, 32, 44, 56, 110)},
    "18": _imagenet((2, 2, 2, 2), bottleneck=False),
    "34": _imagenet((3, 4, 6, 3), bottleneck=False),
    "50": _imagenet((3, 4, 6, 3), bottleneck=True),
    "101": _imagenet((3, 4, 23, 3), bottleneck=True),
    "152": _imagenet((3, 8, 36, 3), bottleneck=True),
}
