"""Cost of attention in shifted windows and over all tokens (Liu et al. 2021, section 3.2, equations 1 and 2)."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax

from attnjax.inspection import cost
from attnjax.models.swin import SWIN_SIZES, Swin, WindowAttention, padded_grid
from attnjax.nn.attention import MultiHeadAttention
from attnjax.nn.windows import fit_window, shifted_window_mask

GIB, MIB = 2**30, 2**20
DIRECTIONS = ("forward", "gradient")


def measure(image_sizes: Sequence[int], rounds: int, max_memory: float) -> list[dict[str, Any]]:
    """Returns one row per pass and image size, for the first stage of Swin-T.

    image_sizes: pixels per side. rounds: how many the minimum time is taken over. max_memory: GiB; a function that
    needs more is not run, and its time is None. Memory is the compiler's plan.
    """
    model = Swin(num_classes=0, **SWIN_SIZES["T"])
    return [_row(model, direction, side, rounds, max_memory) for direction in DIRECTIONS for side in image_sizes]


def _row(model, direction, side, rounds, max_memory):
    layers = _attention_layers(model, side)
    functions = {name: cost.passes(layer, **inputs)[direction] for name, (layer, _, inputs) in layers.items()}
    arguments = {name: jax.jit(partial(_arguments, layer, shape)) for name, (layer, shape, _) in layers.items()}
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
        "tokens": math.prod(padded_grid((side, side), model.patch_size)),
        **{f"{name}_ms": 1e3 * seconds[name] if name in seconds else None for name in layers},
        "time_ratio": seconds["global"] / seconds["window"] if len(seconds) == len(layers) else None,
        **{f"{name}_mib": memory[name] / MIB for name in layers},
        "memory_ratio": memory["global"] / memory["window"],
    }


def _attention_layers(model, side):
    """Returns name -> (layer, input shape, other inputs) for a square image in the first stage."""
    size, heads, width = padded_grid((side, side), model.patch_size), model.num_heads[0], model.width
    window, shift = fit_window(size, model.window)
    mask = shifted_window_mask(size, window, shift) if any(shift) else None
    attention = MultiHeadAttention(heads, width, relative_grid=window)
    return {
        "window": (WindowAttention(attention, window, shift), (1, *size, width), {"mask": mask}),
        "global": (MultiHeadAttention(heads, width), (1, math.prod(size), width), {}),
    }


def _arguments(layer, shape):
    """Returns a layer's variables and a random input."""
    x = jax.random.normal(jax.random.key(0), shape)
    return layer.init(jax.random.key(1), x), x


def exponents(rows: Sequence[dict[str, Any]]) -> dict[tuple[str, str], float]:
    """Returns (column, pass) -> p with cost ~ tokens^p, for columns that have values at two sizes or more."""
    found = {}
    for column in ("window_ms", "global_ms", "window_mib", "global_mib"):
        for direction in DIRECTIONS:
            points = [(row["tokens"], row[column]) for row in rows if row["pass"] == direction and row[column]]
            if len({tokens for tokens, _ in points}) > 1:
                found[column, direction] = cost.exponent(*zip(*points, strict=True))
    return found
