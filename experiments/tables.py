"""Reproduces a paper's table with this code, and prints it.

python experiments/tables.py vit_sizes    # or swin_sizes, resnet_sizes, crossvit_sizes, transformer_sizes
python experiments/tables.py swin_cost [--image_size 56 112 224] [--memory 4] [--rounds 3] [--out swin_cost.png]

..._sizes: parameters in millions and multiply-adds in billions, beside the paper's; != marks a number that does not
round to the paper's. Models are only traced, which takes seconds.

swin_cost: time and memory of attention in the first stage of Swin-T, in shifted windows and over all tokens at the same
width, against image size (Liu et al. 2021, section 3.2, equations 1 and 2), on the current device; --out also plots
them, and writes the numbers as CSV. Time is the minimum over rounds, which alternate between both; it is left out where
the memory, the compiler's plan, exceeds --memory GiB.
"""

import argparse
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
from matplotlib.figure import Figure

from attnjax import cli
from attnjax.errors import UserError
from attnjax.inspection import cost
from attnjax.models.swin import SWIN_SIZES, Swin, WindowAttention, padded_grid
from attnjax.nn.attention import MultiHeadAttention
from attnjax.nn.windows import fit_window, shifted_window_mask
from attnjax.reports import figures
from attnjax.reports import tables as sizes
from attnjax.training import devices

COLUMNS = {"millions": "parameters (M)", "gflops": "GFLOPs"}
PASSES = ("forward", "gradient")
GIB, MIB = 2**30, 2**20


def print_sizes(name: str) -> None:
    """Prints a table of `sizes.TABLES`, with the columns that the paper has numbers for."""
    generate, *notes = sizes.TABLES[name]
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


def print_swin_cost(args: argparse.Namespace) -> None:
    """Prints the costs and how they grow with the number of tokens; with --out plots them."""
    print(devices.make())
    rows = [measure(direction, side, args.rounds, args.memory) for direction in PASSES for side in args.image_size]
    powers = exponents(rows)
    show(rows)
    for (column, direction), power in powers.items():
        print(f"{column}, {direction}: ~ tokens^{power:.2f}")
    if args.out:
        figures.save(args.out, attention_cost(rows, powers), rows)


def measure(direction: str, side: int, rounds: int, max_memory: float) -> dict[str, Any]:
    """Returns the row of a pass and a square image of `side` pixels; times are None above `max_memory` GiB."""
    tokens, layers = attention_layers(side)
    functions = {name: cost.passes(layer, **inputs)[direction] for name, (layer, _, inputs) in layers.items()}
    arguments = {name: jax.jit(partial(random_arguments, layer, shape)) for name, (layer, shape, _) in layers.items()}
    memory = {name: cost.memory(functions[name], *jax.eval_shape(arguments[name])) for name in layers}
    affordable = [name for name in layers if memory[name] <= max_memory * GIB]
    seconds = cost.minimum_times(
        {name: jax.jit(functions[name]) for name in affordable},
        {name: arguments[name]() for name in affordable},
        rounds,
    )
    return {
        "pass": direction,
        "image_size": side,
        "tokens": tokens,
        **{f"{name}_ms": 1e3 * seconds[name] if name in seconds else None for name in layers},
        "time_ratio": seconds["global"] / seconds["window"] if len(seconds) == len(layers) else None,
        **{f"{name}_mib": memory[name] / MIB for name in layers},
        "memory_ratio": memory["global"] / memory["window"],
    }


def attention_layers(side: int) -> tuple[int, dict[str, tuple]]:
    """Returns the number of tokens in Swin-T's first stage, and name -> (layer, input shape, other inputs)."""
    model = Swin(num_classes=0, **SWIN_SIZES["T"])
    size, heads, width = padded_grid((side, side), model.patch_size), model.num_heads[0], model.width
    tokens, (window, shift) = math.prod(size), fit_window(size, model.window)
    mask = shifted_window_mask(size, window, shift) if any(shift) else None
    windowed = WindowAttention(MultiHeadAttention(heads, width, relative_grid=window), window, shift)
    return tokens, {
        "window": (windowed, (1, *size, width), {"mask": mask}),
        "global": (MultiHeadAttention(heads, width), (1, tokens, width), {}),
    }


def random_arguments(layer, shape):
    """Returns a layer's variables and a random input."""
    x = jax.random.normal(jax.random.key(0), shape)
    return layer.init(jax.random.key(1), x), x


def exponents(rows: Sequence[dict[str, Any]]) -> dict[tuple[str, str], float]:
    """Returns (column, pass) -> p with cost ~ tokens^p, for columns that have values at two sizes or more."""
    found = {}
    for column in ("window_ms", "global_ms", "window_mib", "global_mib"):
        for direction in PASSES:
            points = [(row["tokens"], row[column]) for row in rows if row["pass"] == direction and row[column]]
            if len({tokens for tokens, _ in points}) > 1:
                found[column, direction] = cost.exponent(*zip(*points, strict=True))
    return found


def attention_cost(rows: Sequence[Mapping[str, Any]], powers: Mapping[tuple[str, str], float]) -> Figure:
    """Returns time and memory against tokens, log-log; `powers`, those of `exponents`, are in the legend."""
    figure, axes = figures.side_by_side(2, (9, 3.8))
    for axis, unit, title in zip(axes, ("ms", "mib"), ("time (ms)", "memory (MiB)"), strict=True):
        for name, color, marker in (("window", "C0", "o"), ("global", "C3", "s")):
            column = f"{name}_{unit}"
            for direction, style in zip(PASSES, ("-", "--"), strict=True):
                points = [(row["tokens"], row[column]) for row in rows if row["pass"] == direction and row[column]]
                power = powers.get((column, direction))
                label = f"{name}, {direction}" + (f" $\\sim N^{{{power:.2f}}}$" if power else "")
                if points:
                    axis.plot(*zip(*points, strict=True), f"{marker}{style}", color=color, markersize=4, label=label)
        axis.set(xscale="log", yscale="log", xlabel="tokens $N$ (pixels per side)", ylabel=title)
        ticks = {row["tokens"]: f"{row['tokens']:,}\n({row['image_size']})" for row in rows}
        axis.set_xticks(list(ticks), list(ticks.values()), fontsize=7)
        axis.minorticks_off()
        axis.legend(frameon=False, fontsize=9)
    return figure


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=["swin_cost", *sizes.TABLES])
    swin = parser.add_argument_group("swin_cost")
    swin.add_argument("--out", type=Path, metavar="FILE", help="plot to this file")
    swin.add_argument("--rounds", type=int, default=3)
    swin.add_argument(
        "--image_size", type=int, nargs="+", default=[56, 112, 168, 224, 336, 448, 672], help="pixels per side"
    )
    swin.add_argument("--memory", type=float, default=4.0, help="do not time what needs more GiB")
    args = cli.parse_args(parser, overrides_allowed=False)
    if args.rounds < 1 or min(args.image_size) < 1:
        raise UserError("--rounds and --image_size should be 1 or more")
    if args.name == "swin_cost":
        print_swin_cost(args)
    elif args.out:
        raise UserError(f"{args.name} has no figure: --out is for swin_cost")
    else:
        print_sizes(args.name)


if __name__ == "__main__":
    cli.run(main)
