"""What a training would need: the step is compiled for its largest batch, and nothing is trained or written.

It can be compiled for hardware that this machine does not have; see `attnjax.runs.targets`.
"""

import math
import time
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from attnjax.inspection import cost, parameters
from attnjax.inspection.flops import step_multiply_adds
from attnjax.nn.kernels import backend, compiling_for, recorded
from attnjax.runs.experiment import Experiment, make_devices
from attnjax.runs.targets import Target


def measure(experiment: Experiment, target: Target | None = None) -> dict[str, Any]:
    """Returns what `report` shows: name -> number of parameters, bytes, floating-point operations or seconds.

    "share" has the shapes of the arrays that one device reads in a microbatch. "communication" has the bytes that each
    kind of collective operation brings to a device, "attention" the kernels and their layers.
    """
    task, devices, step = experiment.task, experiment.devices, experiment.train_step
    state, batches = experiment.state_shapes(), task.batches()
    batch = max(task.batch_shapes(next(batches)), key=lambda shapes: sum(map(_size, shapes.values())))
    batches.close()

    began = time.perf_counter()
    with recorded() as attention:
        traced = devices.trace(step, state, batch)
    compiled = target.compile(traced) if target else traced.lower().compile()
    seconds = time.perf_counter() - began
    rows = len(batch["mask"]) * jax.process_count() // devices.shards // step.accumulate
    return {
        "parameters": parameters.count(state.params),
        "state bytes": devices.state_bytes(state),
        "peak bytes": cost.peak_bytes(compiled),
        "operations": 2 * jax.process_count() * step_multiply_adds(step, state, batch),
        "communication": cost.communication(compiled),
        "attention": attention,
        "share": {name: (rows, *x.shape[1:]) for name, x in batch.items() if name in task.shown},
        "seconds to compile": seconds,
    }


def report(config: ConfigDict, workdir: Path, *, target: Target | None = None) -> None:
    """Compiles the training step of a config and prints what it needs, here or on the devices of a target.

    UserError for whatever would stop the training before its first step.
    """
    with compiling_for(target.backend if target else backend()):
        devices = make_devices(config, target.devices if target else ())
        experiment = Experiment.from_config(config, workdir, devices=devices)
        found = measure(experiment, target)
    share = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in found["share"].items())
    parts = f", {config.accumulate} microbatches per step" if config.accumulate > 1 else ""
    table = Table(show_header=False)
    for name, value in {
        "devices": str(experiment.devices),
        "model": f"{config.model.name}, {found['parameters']:,} parameters",
        "state per device": _bytes(found["state bytes"]),
        "peak memory per device": f"{_bytes(found['peak bytes'])}, as planned by the compiler",
        "operations per step": f"{found['operations'] / 1e9:,.3f} GFLOP in matrix products and convolutions",
        "between devices": ", ".join(f"{k} {_bytes(n)}" for k, n in found["communication"].items()) or "nothing",
        "attention": ", ".join(f"{kernel}: {reason}" for kernel, reason in found["attention"]) or "none",
        "batch per device": f"{share}, the largest{parts}",
        "seconds to compile": f"{found['seconds to compile']:.1f}",
    }.items():
        table.add_row(name, escape(value))
    Console(highlight=False, width=120).print(table)


def _size(shape):
    return math.prod(shape.shape)


def _bytes(count):
    return f"{count / 2**20:,.2f} MiB ({count:,} bytes)"
