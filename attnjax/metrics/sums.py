"""Means over batches, microbatches, devices and processes, kept as sums and weights until they are read."""

from collections.abc import Callable, Iterable
from typing import Any

import jax

from attnjax.errors import UserError

# Metric name -> (sum, weight), both scalars: they add, and the mean is sum / weight.
Metrics = dict[str, tuple[jax.Array, jax.Array]]


def means(sums: Metrics) -> dict[str, float]:
    """Returns the mean of each metric; waits for the device."""
    return {name: float(total) / max(float(weight), 1e-9) for name, (total, weight) in jax.device_get(sums).items()}


def add(total: Metrics | None, metrics: Metrics) -> Metrics:
    """Adds the sums and weights of `metrics` to `total`, without waiting for the device."""
    return metrics if total is None else jax.tree.map(lambda a, b: a + b, total, metrics)


def mean_over(eval_step: Callable[[Any, dict], Metrics], variables: Any, batches: Iterable[dict]) -> dict[str, float]:
    """Returns the mean of each metric over all examples of `batches`, each counted once; UserError without any."""
    total: Metrics | None = None
    for batch in batches:
        total = add(total, eval_step(variables, batch))
    if total is None or not any(weight for _, weight in jax.device_get(total).values()):
        raise UserError("nothing to measure: not one example could be read")
    return means(total)
