"""Rebuilds a paper's table from our own code, and prints it.

python experiments/tables.py vit_sizes    # or swin_sizes, resnet_sizes, crossvit_sizes, transformer_sizes
python experiments/tables.py swin_cost [--image_size 56 112 224] [--memory 4] [--rounds 3] [--out swin_cost.png]

..._sizes: parameters, in millions, and multiply-adds, in billions, beside the paper's; what is marked with != is not
the paper's at the paper's digits. Nothing is computed; it takes seconds.

swin_cost: attention in the first stage of Swin-T, in shifted windows and, of the same width, over all tokens, against
the size of the image (Liu et al. 2021, section 3.2, equations 1 and 2), measured on the device at hand; with --out
drawn, with the numbers beside as CSV. Time is the least of all rounds, in which both run in turn, and left out where
the memory exceeds --memory GiB; memory is the compiler's plan.
"""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from attnjax import cli
from attnjax.errors import UserError
from attnjax.inspection import cost
from attnjax.models.swin import SWIN_SIZES, Swin, WindowAttention, padded_grid
from attnjax.nn.attention import MultiHeadAttention
from attnjax.nn.windows import fit_window, shifted_window_mask
from attnjax.reports import figures
from attnjax.reports import tables as sizes
from attnjax.reports.saving import save_figure
from attnjax.training import devices as parallel

GIB, MIB = 2**30, 2**20


class Table(NamedTuple):
    """Rows of the same columns, lines to be said below them, and their figure, if any."""

    rows: list[dict[str, Any]]
    notes: list[str]
    figure: Any = None


def sizes_of(name: str) -> Table:
    """Returns a table of `sizes.TABLES`, with only the columns that the paper has figures for."""
    rows, notes = sizes.TABLES[name]
    found = list(rows())
    columns = {"millions": "parameters (M)", "gflops": "GFLOPs"}
    shown = {field: title for field, title in columns.items() if any(getattr(row, field) for row in found)}
    table = [
        {"model": row.model, "parameters": row.parameters}
        | {key: value for field, title in shown.items() for key, value in _compared(title, getattr(row, field))}
        for row in found
    ]
    return Table(table, notes)


def _compared(title, figure):
    cells = (None, None, None) if figure is None else (figure.rounded(more=1), figure.paper, _difference(figure))
    return zip((title, f"{title}, paper", f"{title}, difference"), cells, strict=True)


def _difference(figure):
    return f"{'' if figure.agrees else '!= '}{100 * figure.difference:+.1f}%"


def swin_cost(args) -> Table:
    """Compares window attention with global attention, forward and gradient, by image size."""
    model = Swin(num_classes=0, **SWIN_SIZES["T"])
    rows = []
    for direction in ("forward", "gradient"):
        for side in args.image_size:
            layers = _attention_layers(model, side)
            functions = {name: cost.passes(layer, **inputs)[direction] for name, (layer, _, inputs) in layers.items()}
            arguments = {name: _arguments(layer, shape) for name, (layer, shape, _) in layers.items()}
            memory = {name: cost.memory(functions[name], *jax.eval_shape(arguments[name])) for name in layers}
            affordable = [name for name in layers if memory[name] <= args.memory * GIB]
            seconds = cost.minimum_times(
                {name: jax.jit(functions[name]) for name in affordable},
                {name: arguments[name]() for name in affordable},
                args.rounds,
            )
            rows.append(
                {
                    "pass": direction,
                    "image_size": side,
                    "tokens": math.prod(padded_grid((side, side), model.patch_size)),
                    **{f"{name}_ms": 1e3 * seconds[name] if name in seconds else None for name in layers},
                    "time_ratio": seconds["global"] / seconds["window"] if len(seconds) == len(layers) else None,
                    **{f"{name}_mib": memory[name] / MIB for name in layers},
                    "memory_ratio": memory["global"] / memory["window"],
                }
            )
    exponents = _exponents(rows)
    notes = [f"{column}, {direction}: ~ tokens^{p:.2f}" for (column, direction), p in exponents.items()]
    return Table(rows, notes, figures.attention_cost(rows, exponents))


def _attention_layers(model, side):
    """Returns name -> (layer, shape of its input, its other inputs) for a square image, as in the first stage."""
    size, heads, width = padded_grid((side, side), model.patch_size), model.num_heads[0], model.width
    window, shift = fit_window(size, model.window)
    mask = shifted_window_mask(size, window, shift) if any(shift) else None
    attention = MultiHeadAttention(heads, width, relative_grid=window)
    return {
        "window": (WindowAttention(attention, window, shift), (1, *size, width), {"mask": mask}),
        "global": (MultiHeadAttention(heads, width), (1, math.prod(size), width), {}),
    }


def _arguments(layer, shape) -> Callable:
    """Returns a function that makes the variables of a layer and a random input."""

    @jax.jit
    def make():
        x = jax.random.normal(jax.random.key(0), shape)
        return layer.init(jax.random.key(1), x), x

    return make


def _exponents(rows):
    """Returns (column, pass) -> the power of the number of tokens that the column grows with, where it can be told."""
    found = {}
    for column in ("window_ms", "global_ms", "window_mib", "global_mib"):
        for direction in ("forward", "gradient"):
            points = [(row["tokens"], row[column]) for row in rows if row["pass"] == direction and row[column]]
            if len({tokens for tokens, _ in points}) > 1:
                found[column, direction] = cost.exponent(*zip(*points, strict=True))
    return found


def show(rows: list[dict[str, Any]]) -> None:
    """Prints rows of the same columns, aligned; numbers with three digits that count, what is None as a dash."""
    lines = [list(rows[0]), *([_cell(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))


def _cell(value):
    if isinstance(value, float):
        return f"{value:,.{max(0, 2 - math.floor(math.log10(abs(value) or 1)))}f}"
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else value


TABLES: dict[str, Callable[[argparse.Namespace], Table]] = {"swin_cost": swin_cost} | {
    name: lambda args: sizes_of(args.name) for name in sizes.TABLES
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=TABLES)
    parser.add_argument("--out", type=Path, metavar="FILE", help="the file for the figure")
    parser.add_argument("--rounds", type=int, default=3)
    swin = parser.add_argument_group("swin_cost")
    swin.add_argument(
        "--image_size", type=int, nargs="+", default=[56, 112, 168, 224, 336, 448, 672], help="pixels a side"
    )
    swin.add_argument("--memory", type=float, default=4.0, help="the most GiB that a timed function may need")
    args = cli.parse_args(parser)
    if args.overrides:
        raise UserError("tables takes no --config overrides")
    if args.rounds < 1 or min(args.image_size) < 1:
        raise UserError("--rounds and --image_size should be 1 or more")
    if args.name == "swin_cost":
        print(parallel.describe())
    elif args.out:
        raise UserError(f"{args.name} has no figure: --out is for swin_cost")
    table = TABLES[args.name](args)
    show(table.rows)
    print("\n".join(table.notes))
    if args.out:
        save_figure(args.out, table.figure, table.rows)


if __name__ == "__main__":
    cli.run(main)
