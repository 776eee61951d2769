"""Papers' tables of model sizes: parameters and multiply-adds of our models beside the printed numbers."""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from attnjax import models
from attnjax.inspection import flops, parameters


class Comparison(NamedTuple):
    """Our number, and the paper's as printed."""

    ours: float
    paper: str

    @property
    def difference(self) -> float:
        """Relative to the paper's number."""
        return self.ours / float(self.paper) - 1

    @property
    def agrees(self) -> bool:
        """Whether ours, rounded to the paper's digits, is the printed number."""
        return self.rounded() == self.paper

    def rounded(self, extra_digits: int = 0) -> str:
        """Returns ours with the paper's number of decimals, plus `extra_digits`."""
        return f"{self.ours:.{len(self.paper.partition('.')[2]) + extra_digits}f}"


class Row(NamedTuple):
    """A model in a table: its exact parameter count, and parameters in millions and multiply-adds in billions."""

    model: str
    parameters: int
    millions: Comparison | None
    gflops: Comparison | None


def _row(label: str, count: int, millions: str = "", gflops: str = "", operations: int = 0) -> Row:
    """`millions` and `gflops` are the paper's numbers, `operations` our multiply-adds."""
    numbers = (count / 1e6, millions), (operations / 1e9, gflops)
    return Row(label, count, *(Comparison(ours, paper) if paper else None for ours, paper in numbers))


def _image_row(label, name, size, side, millions="", gflops="", num_classes=1000):
    """Returns the row of an image classifier; no arrays are created."""
    model, shape = models.build(models.fields(name, size), num_classes=num_classes), (side, side, 3)
    image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    count = parameters.count(jax.eval_shape(model.init, jax.random.key(0), image)["params"])
    return _row(label, count, millions, gflops, flops.multiply_adds(model, shape) if gflops else 0)


def vit() -> Iterator[Row]:
    """Dosovitskiy et al. (2020), table 1: parameters."""
    for size, paper in {"B/16": "86", "B/32": "86", "L/16": "307", "L/32": "307", "H/14": "632"}.items():
        yield _image_row(f"ViT-{size}", "vit", size, 224, paper)


def swin() -> Iterator[Row]:
    """Liu et al. (2021), table 1: parameters and FLOPs of Swin, and of ViT and DeiT, its baselines."""
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
        yield _image_row(f"{label}, {side} px", name, label.partition("-")[2], side, *paper)


def resnet() -> Iterator[Row]:
    """He et al. (2015), table 1: FLOPs on ImageNet, and table 6: parameters on CIFAR-10."""
    for size, paper in {"18": "1.8", "34": "3.6", "50": "3.8", "101": "7.6", "152": "11.3"}.items():
        yield _image_row(f"ResNet-{size}", "resnet", size, 224, gflops=paper)
    for depth, paper in {20: "0.27", 32: "0.46", 44: "0.66", 56: "0.85", 110: "1.7"}.items():
        yield _image_row(f"ResNet-{depth} for CIFAR-10", "resnet", f"cifar{depth}", 32, paper, num_classes=10)


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
        yield _image_row(f"CrossViT-{size}", "crossvit", size, 240, *paper)


VOCABULARY = 37_000  # joint byte pairs, approximately the paper's

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
    """Vaswani et al. (2017), table 3: parameters, with a joint vocabulary of 37,000."""
    tokens = jax.ShapeDtypeStruct((1, 4), jnp.int32)
    for label, (changes, paper) in _TABLE_3.items():
        fields = models.fields("transformer", "base", **changes)
        model = models.build(fields, source_vocabulary=VOCABULARY, target_vocabulary=VOCABULARY)
        params = jax.eval_shape(model.init, jax.random.key(0), tokens, tokens)["params"]
        yield _row(label, parameters.count(params), paper)


# name of the table -> its rows, and lines of notes that explain the differences
TABLES: dict[str, tuple[Callable[[], Iterator[Row]], *tuple[str, ...]]] = {
    "vit_sizes": (
        vit,
        "The paper prints one number per width and depth. Its 86 is B/16 without the head of 1,000 classes (85.8).",
        "Its 307 is L/32 (306.5), whose patch embedding is larger than L/16's.",
    ),
    "swin_sizes": (
        swin,
        "We count the multiply-adds of matrix products and convolutions only. Microsoft's flops() adds one per",
        "LayerNorm element; `attnjax.inspection.flops.microsoft_flops` does too, and equals it exactly.",
        "FLOPs of ViT and DeiT are within 0.4% of the paper's. For parameters of 86 and 307 see vit_sizes.",
    ),
    "resnet_sizes": (
        resnet,
        "50 layers and more: as in torchvision, the 3x3 convolution has the stride; in the paper the 1x1 before it",
        "has, so that each stage's first block is cheaper. 34: projection shortcuts, as in torchvision; without",
        "them it is 3.64.",
    ),
    "crossvit_sizes": (crossvit, "The parameter counts equal those of the authors' code and of timm exactly."),
    "transformer_sizes": (
        transformer,
        "No vocabulary gives both of the paper's 65 and 213: base needs about 40,800 subwords for its 65, big",
        "about 35,800 for its 213; 37,000 give 63.1 and 214.2. The differences agree: d_k=16 saves 7.1 of 65,",
        "d_k=32 saves 4.7. With widths 256 and 1,024 and 8 heads, the paper's d_k is 32 and 128, as here.",
    ),
}

COLUMNS = {"millions": "parameters (M)", "gflops": "GFLOPs"}


def print_sizes(name: str) -> None:
    """Prints a table of `TABLES`, with the columns that the paper has numbers for."""
    generate, *notes = TABLES[name]
    rows = list(generate())
    table: list[dict[str, Any]] = []
    for row in rows:
        table.append({"model": row.model, "parameters": row.parameters})
        for field, title in COLUMNS.items():
            if any(getattr(row, field) for row in rows):
                table[-1] |= _compared(title, getattr(row, field))
    show(table)
    print("\n".join(notes))


def _compared(title, number):
    if number is None:
        cells = (None, None, None)
    else:
        difference = f"{'' if number.agrees else '!= '}{100 * number.difference:+.1f}%"
        cells = (number.rounded(extra_digits=1), number.paper, difference)
    return dict(zip((title, f"{title}, paper", f"{title}, difference"), cells, strict=True))


def show(rows: list[dict[str, Any]]) -> None:
    """Prints rows with the same columns, aligned: numbers with three significant digits, None as a dash."""
    lines = [list(rows[0]), *([_cell(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))


def _cell(value):
    if isinstance(value, float):
        return f"{value:,.{max(0, 2 - math.floor(math.log10(abs(value) or 1)))}f}"
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else value
