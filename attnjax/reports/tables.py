"""Papers' tables of sizes, from our own models: parameters and multiply-adds beside what the paper prints."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp

from attnjax import models
from attnjax.inspection import flops, parameters


class Figure(NamedTuple):
    """A number as a paper prints it, and ours."""

    ours: float
    paper: str

    @property
    def difference(self) -> float:
        """Of ours from the paper's, relative."""
        return self.ours / float(self.paper) - 1

    @property
    def agrees(self) -> bool:
        """Whether ours, rounded to the paper's digits, is what it prints."""
        return self.rounded() == self.paper

    def rounded(self, more: int = 0) -> str:
        """Returns ours with the paper's digits, or some `more`."""
        return f"{self.ours:.{len(self.paper.partition('.')[2]) + more}f}"


class Row(NamedTuple):
    """A model of a table: what the paper prints of its parameters, in millions, and multiply-adds, in billions."""

    model: str
    parameters: int
    millions: Figure | None
    gflops: Figure | None


def _counted(name, size, side, num_classes=1000):
    """Returns the parameters of an image classifier, and what counts its multiply-adds; makes no arrays."""
    model, shape = models.build(models.fields(name, size), num_classes=num_classes), (side, side, 3)
    image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    return parameters.count(variables["params"]), lambda: flops.multiply_adds(model, shape)


def _row(label, counted, millions="", giga=""):
    """Returns a row of (parameters, what counts multiply-adds); `millions` and `giga` are what the paper prints."""
    count, operations = counted
    return Row(
        label,
        count,
        Figure(count / 1e6, millions) if millions else None,
        Figure(operations() / 1e9, giga) if giga else None,
    )


def vit() -> Iterator[Row]:
    """Dosovitskiy et al. (2020), table 1: parameters."""
    for size, paper in {"B/16": "86", "B/32": "86", "L/16": "307", "L/32": "307", "H/14": "632"}.items():
        yield _row(f"ViT-{size}", _counted("vit", size, 224), paper)


def swin() -> Iterator[Row]:
    """Liu et al. (2021), table 1: parameters and FLOPs; of ViT and DeiT, too, which it compares Swin with."""
    printed = {
        "ViT-B/16": ("vit", 384, "86", "55.4"),
        "ViT-L/16": ("vit", 384, "307", "190.7"),
        "DeiT-S/16": ("vit", 224, "22", "4.6"),
        "DeiT-B/16": ("vit", 224, "86", "17.5"),
        "Swin-T": ("swin", 224, "29", "4.5"),
        "Swin-S": ("swin", 224, "50", "8.7"),
        "Swin-B": ("swin", 224, "88", "15.4"),
        "Swin-B-384": ("swin", 384, "88", "47.0"),
        "Swin-L-384": ("swin", 384, "197", "103.9"),
    }
    for label, (name, side, *paper) in printed.items():
        yield _row(f"{label}, {side} px", _counted(name, label.partition("-")[2], side), *paper)


def resnet() -> Iterator[Row]:
    """He et al. (2015), table 1, FLOPs for ImageNet, and table 6, parameters for CIFAR-10."""
    for size, paper in {"18": "1.8", "34": "3.6", "50": "3.8", "101": "7.6", "152": "11.3"}.items():
        yield _row(f"ResNet-{size}", _counted("resnet", size, 224), giga=paper)
    for depth, paper in {20: "0.27", 32: "0.46", 44: "0.66", 56: "0.85", 110: "1.7"}.items():
        yield _row(f"ResNet-{depth} for CIFAR-10", _counted("resnet", f"cifar{depth}", 32, num_classes=10), paper)


def crossvit() -> Iterator[Row]:
    """Chen et al. (2021), table 1: parameters and FLOPs."""
    printed = {
        "tiny": ("6.9", "1.6"),
        "small": ("26.7", "5.6"),
        "base": ("104.7", "21.2"),
        "9": ("8.6", "1.8"),
        "15": ("27.4", "5.8"),
        "18": ("43.3", "9.0"),
    }
    for size, paper in printed.items():
        yield _row(f"CrossViT-{size}", _counted("crossvit", size, 240), *paper)


VOCABULARY = 37_000  # of the paper's joint byte pairs, about

_TABLE_3 = {
    "base": ({}, "65"),
    "(B) d_k=16": ({"key_size": 16}, "58"),
    "(B) d_k=32": ({"key_size": 32}, "60"),
    "(C) N=2": ({"encoder_depth": 2, "decoder_depth": 2}, "36"),
    "(C) N=4": ({"encoder_depth": 4, "decoder_depth": 4}, "50"),
    "(C) N=8": ({"encoder_depth": 8, "decoder_depth": 8}, "80"),
    "(C) d_model=256": ({"width": 256}, "28"),
    "(C) d_model=1024": ({"width": 1024}, "168"),
    "(C) d_ff=1024": ({"mlp_dim": 1024}, "53"),
    "(C) d_ff=4096": ({"mlp_dim": 4096}, "90"),
    "big": ({"width": 1024, "mlp_dim": 4096, "num_heads": 16}, "213"),
}


def transformer() -> Iterator[Row]:
    """Vaswani et al. (2017), table 3: parameters, of a joint vocabulary of 37,000."""
    tokens = jax.ShapeDtypeStruct((1, 4), jnp.int32)
    for label, (changes, paper) in _TABLE_3.items():
        fields = models.fields("transformer", "base", **changes)
        model = models.build(fields, source_vocabulary=VOCABULARY, target_vocabulary=VOCABULARY)
        params = jax.eval_shape(model.init, jax.random.key(0), tokens, tokens)["params"]
        yield _row(label, (parameters.count(params), None), paper)


# name of the table -> its rows, and what is to be said of its differences
TABLES: dict[str, tuple[Callable[[], Iterator[Row]], list[str]]] = {
    "vit_sizes": (
        vit,
        [
            "The paper has one number for a width and depth. 86 is B/16 without its head of 1,000 classes, 85.8; 307",
            "is L/32, 306.5, whose patches make larger kernels: no L/16 has it.",
        ],
    ),
    "swin_sizes": (
        swin,
        [
            "Ours are multiply-adds of products and convolutions alone. Microsoft's flops() adds one for each number",
            "in a LayerNorm, which `attnjax.analysis.flops.microsoft_flops` does too, and then equals it exactly.",
            "Those of ViT and DeiT are within 0.4% of the paper's; on their 86 and 307 see vit_sizes.",
        ],
    ),
    "resnet_sizes": (
        resnet,
        [
            "50 layers and more: ours stride in the 3x3 convolution, as torchvision's, the paper's in the 1x1 before,",
            "which makes each stage's first block cheaper. 34: ours has projections, as torchvision's; without, 3.64.",
        ],
    ),
    "crossvit_sizes": (
        crossvit,
        ["The parameters are those of the authors' code and of timm's, to the last one."],
    ),
    "transformer_sizes": (
        transformer,
        [
            "No vocabulary gives both the paper's 65 and its 213: the base's 65 needs about 40,800 subwords, the big's",
            "213 about 35,800; with 37,000 they are 63.1 and 214.2. Its differences agree: d_k=16 saves 7.1 of 65, and",
            "d_k=32 saves 4.7. Of width 256 and 1,024 the paper's d_k is 32 and 128 at 8 heads, as here.",
        ],
    ),
}
