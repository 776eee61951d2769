"""What a training would need: the step is compiled for its largest batch, and nothing is trained or written."""

import functools
import math
import time
from pathlib import Path

import jax
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from attnjax import tasks as workloads
from attnjax.inspection import parameters
from attnjax.inspection.flops import step_multiply_adds
from attnjax.runs import folder as run
from attnjax.training import devices as parallel
from attnjax.training.optimizer import make_optimizer, make_schedule
from attnjax.training.step import make_train_step


def measure(config: ConfigDict, workdir: Path) -> dict[str, float | str]:
    """Returns what `report` shows, name -> number of parameters, bytes, floating-point operations or seconds.

    UserError for whatever would stop the training before its first step.
    """
    workload, devices = workloads.for_training(config, workdir), parallel.of(config)
    schedule = make_schedule(config.optimizer, steps=0)
    optimizer = make_optimizer(config.optimizer, schedule)
    step = make_train_step(workload.task, optimizer, schedule, config.ema_decay, config.accumulate)
    state = jax.eval_shape(functools.partial(run.create_state, workload, optimizer))
    batches = workload.batches()
    batch = max(workload.batch_shapes(next(batches)), key=lambda shapes: sum(map(_size, shapes.values())))
    batches.close()

    began = time.perf_counter()
    plan = devices.lower(step, state, batch).compile().memory_analysis()
    rows = len(batch["mask"]) * jax.process_count() // devices.shards
    share = {name: (rows // config.accumulate, *x.shape[1:]) for name, x in batch.items() if name in workload.shown}
    return {
        "parameters": parameters.count(state.params),
        "state bytes": devices.state_bytes(state),
        "peak bytes": plan.argument_size_in_bytes
        + plan.output_size_in_bytes
        + plan.temp_size_in_bytes
        - plan.alias_size_in_bytes,
        "operations": 2 * jax.process_count() * step_multiply_adds(step, state, batch),
        "share": share,
        "seconds to compile": time.perf_counter() - began,
    }


def report(config: ConfigDict, workdir: Path) -> None:
    """Compiles the training step of a config and prints what it needs."""
    found, devices = measure(config, workdir), parallel.of(config)
    share = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in found["share"].items())
    parts = f", {config.accumulate} of them a step" if config.accumulate > 1 else ""
    table = Table(show_header=False)
    for name, value in {
        "devices": parallel.describe(devices),
        "model": f"{config.model.name}, {found['parameters']:,} parameters",
        "state, each device": _bytes(found["state bytes"]),
        "peak memory, each device": f"{_bytes(found['peak bytes'])}, by the compiler's plan",
        "operations, each step": f"{found['operations'] / 1e9:,.3f} GFLOP, of matrix products and convolutions",
        "batch, each device": f"{share}, the largest{parts}",
        "seconds to compile": f"{found['seconds to compile']:.1f}",
    }.items():
        table.add_row(name, value)
    Console(highlight=False, width=120).print(table)


def _size(shape):
    return math.prod(shape.shape)


def _bytes(count):
    return f"{count / 2**20:,.2f} MiB ({count:,} bytes)"
