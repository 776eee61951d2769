"""Cost of functions on this machine's device: measured run time, and peak memory according to the compiler."""

import math
import re
import time
from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax
import numpy as np


def minimum_times(functions: dict[str, Callable], arguments: dict[str, tuple], rounds: int) -> dict[str, float]:
    """Returns each function's minimum run time in seconds over `rounds` rounds, each of which runs all of them once."""
    best = dict.fromkeys(functions, float("inf"))
    for round_ in range(rounds + 1):  # the first round compiles and does not count
        for name, function in functions.items():
            began = time.perf_counter()
            jax.block_until_ready(function(*arguments[name]))
            if round_:
                best[name] = min(best[name], time.perf_counter() - began)
    return best


def memory(function: Callable, *arguments) -> int:
    """Returns the peak memory of `function` in bytes according to XLA: arguments, results and temporary buffers.

    `arguments` are arrays or ShapeDtypeStructs; nothing runs. On CPU the function is compiled without YNNPACK fusion,
    whose library allocates memory that XLA does not report; an actual run may need more or less.
    """
    on_cpu = jax.default_backend() == "cpu"
    options: dict[str, str | bool] = {"xla_cpu_experimental_ynn_fusion_type": ""} if on_cpu else {}
    return peak_bytes(jax.jit(function).lower(*arguments).compile(options))


def peak_bytes(compiled: jax.stages.Compiled) -> int:
    """Returns the peak memory of a compiled function in bytes, per device, as planned by the compiler."""
    plan = compiled.memory_analysis()
    assert plan is not None  # every backend we run on reports it
    return plan.argument_size_in_bytes + plan.output_size_in_bytes + plan.temp_size_in_bytes - plan.alias_size_in_bytes


_COLLECTIVES = r"(all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(-start)?"
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f64": 8, "s64": 8, "u64": 8}


def communication(compiled: jax.stages.Compiled) -> dict[str, int]:
    """Returns the bytes that each kind of collective operation brings to a device: kind -> bytes.

    From the compiled program; an operation inside a loop counts once.
    """
    total: dict[str, int] = {}
    for line in re.findall(rf"= (.+? {_COLLECTIVES})\(", compiled.as_text() or ""):
        shapes = re.findall(r"(\w+)\[([\d,]*)\]", line[0])
        if line[2]:  # an asynchronous operation's operands are listed before its results
            shapes = shapes[len(shapes) // 2 :]
        sizes = (math.prod(map(int, filter(None, shape.split(",")))) * _BYTES.get(kind, 4) for kind, shape in shapes)
        total[line[1]] = total.get(line[1], 0) + sum(sizes)
    return total


def passes(layer: nn.Module, **inputs) -> dict[str, Callable]:
    """Returns a layer's "forward" pass and "gradient", as uncompiled functions of (variables, x).

    The gradient is that of the output's sum of squares with respect to both. `inputs` are passed on to the layer.
    """
    forward = partial(layer.apply, train=False, **inputs)

    def loss(variables, x):
        return (forward(variables, x) ** 2).sum()

    return {"forward": forward, "gradient": jax.grad(loss, argnums=(0, 1))}


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Returns p of the power law cost ~ size^p that fits best, by least squares on the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])
