"""What functions cost on the device at hand: time by running them, memory by asking the compiler."""

import time
from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax
import numpy as np


def minimum_times(functions: dict, arguments: dict, rounds: int) -> dict[str, float]:
    """Returns the least seconds of each function over `rounds` rounds, in each of which all are run once."""
    best = dict.fromkeys(functions, float("inf"))
    for round_ in range(rounds + 1):  # the first compiles
        for name, function in functions.items():
            began = time.perf_counter()
            jax.block_until_ready(function(*arguments[name]))
            if round_:
                best[name] = min(best[name], time.perf_counter() - began)
    return best


def memory(function: Callable, *arguments) -> int:
    """Returns the bytes that `function`, compiled, needs by the compiler's plan: arguments, results, all in between.

    Shapes will do for `arguments`; no arrays are made. On a CPU this is the plan without products fused by a library
    (YNNPACK), which takes memory of its own that no plan shows: what then runs may need more or less.
    """
    options = {"xla_cpu_experimental_ynn_fusion_type": ""} if jax.default_backend() == "cpu" else {}
    plan = jax.jit(function).lower(*arguments).compile(options).memory_analysis()
    return plan.argument_size_in_bytes + plan.output_size_in_bytes + plan.temp_size_in_bytes - plan.alias_size_in_bytes


def passes(layer: nn.Module, **inputs) -> dict[str, Callable]:
    """Returns a layer's "forward" pass and its "gradient", functions of (variables, x) that are still to be compiled.

    The gradient is that of the sum of squares of the result, by variables and x. `inputs` go to the layer as they are.
    """
    forward = partial(layer.apply, train=False, **inputs)

    def loss(variables, x):
        return (forward(variables, x) ** 2).sum()

    return {"forward": forward, "gradient": jax.grad(loss, argnums=(0, 1))}


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Returns p of the law cost ~ size^p that fits best: least squares of the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])
