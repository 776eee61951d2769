"""Measures time and memory of attention in shifted windows and over all tokens, against the size of the image."""

import argparse
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
from matplotlib.figure import Figure

from attnjax.inspection import cost
from attnjax.models.swin import SWIN_SIZES, Swin, WindowAttention, padded_grid
from attnjax.nn.attention import MultiHeadAttention
from attnjax.nn.windows import fit_window, shifted_window_mask
from attnjax.reports import figures
from attnjax.reports.tables import show
from attnjax.training import devices

PASSES = ("forward", "gradient")
GIB, MIB = 2**30, 2**20


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
