"""The training loop: step, log, validate, save."""

import functools
import math
import time
from pathlib import Path

from ml_collections import ConfigDict

from attnjax import workloads
from attnjax.analysis import parameters
from attnjax.errors import UserError
from attnjax.training import metrics as metrics_lib
from attnjax.training import parallel, run
from attnjax.training.checkpoint import Checkpoints, has_checkpoint
from attnjax.training.optimizer import make_optimizer, make_schedule
from attnjax.training.step import make_train_step
from attnjax.weights import transfer


def _steps(config, per_epoch):
    steps = config.steps or math.ceil(config.epochs * per_epoch)
    if steps <= 0:
        raise UserError(f"nothing to train: steps={config.steps}, epochs={config.epochs}; one must be positive")
    return steps


def _header(log, workload, devices, workdir, params, steps):
    config, parts = workload.config, parameters.count_by_part(params)
    log.message(f"devices     {parallel.describe(devices)}")
    log.message(f"model       {config.model.name}, {parameters.count(params):,} parameters")
    for name, count in parts.items():
        log.message(f"            {count:>12,} {name}")
    for line in workload.header:
        log.message(line)
    log.message(f"steps       {steps:,} ({steps / workload.steps_per_epoch:.1f} epochs)")
    log.message(f"run folder  {workdir}")


def _closing_rows(workdir, checkpoints, steps, seconds):
    rows = {"run folder": str(workdir), "steps": f"{steps:,}", "seconds since this start": f"{seconds:.0f}"}
    if checkpoints.best is not None:
        best, last = checkpoints.metrics(checkpoints.best), checkpoints.metrics(checkpoints.latest)
        rows["validation, best checkpoint"] = f"{_words(best)}, step {checkpoints.best:,}"
        rows["validation, last checkpoint"] = f"{_words(last)}, step {checkpoints.latest:,}"
    return rows


def _words(metrics):
    return ", ".join(f"{name} {value:.4f}" for name, value in metrics.items()) if metrics else "not validated"


def train(config: ConfigDict, workdir: Path) -> None:
    """Trains to the last step, going on from the folder's latest checkpoint if there is one.

    Nothing is written before all that the config asks for is known to be there and to fit; UserError if it is not.
    """
    if (workdir / "config.json").exists():
        run.check_same_config(workdir, config)
    workload = workloads.for_training(config, workdir)
    steps = _steps(config, workload.steps_per_epoch)
    schedule = make_schedule(config.optimizer, steps)
    optimizer = make_optimizer(config.optimizer, schedule)
    train_step = make_train_step(workload.task, optimizer, schedule, config.ema_decay, config.accumulate)
    devices = parallel.of(config)
    state, report = _first_state(config, workdir, devices, functools.partial(run.create_state, workload, optimizer))

    batches = workload.batches()
    checkpoints = Checkpoints(workdir, config.best_metric, keep=config.keep_checkpoints)
    run.write_description(workdir, workload)
    if start := checkpoints.latest or 0:
        state = checkpoints.restore(start, state, batches)
        report = [f"resumed from step {start:,} of {workdir}"]
    log = metrics_lib.RunLog(workdir, start, steps)
    try:
        _header(log, workload, devices, workdir, state.params, steps)
        for line in report:
            log.message(line)
        began = time.perf_counter()
        compiled = devices.train_step(train_step)
        _take_steps(workload, compiled, state, batches, checkpoints, log, range(start + 1, steps + 1))
        checkpoints.wait()
        log.table(_closing_rows(workdir, checkpoints, steps, time.perf_counter() - began))
    finally:
        log.close()
        checkpoints.close()
        batches.close()


def _first_state(config, workdir, devices, create):
    """Returns the state before the first step, and lines on where it is from."""
    if has_checkpoint(workdir) or not (config.init_from or config.get("encoder_from")):
        return devices.create(create), [f"new run, seed {config.seed}"]
    state, changes = transfer.initialise(create(), config)
    report = [f"initialised from {config.init_from}"] if config.init_from else []
    return devices.place(state), [f"new run, seed {config.seed}", *report, *changes]


def _take_steps(workload, train_step, state, batches, checkpoints, log, steps):
    config = workload.config
    every = config.eval_every or workload.steps_per_epoch
    window = _Window(log, workload.unit)
    for step in steps:
        state, metrics = train_step(state, next(batches))
        window.flush()  # of the step before, while the device works on this one
        window.add(metrics)
        last = step == steps[-1]
        if step % config.log_every == 0 or last:
            window.close(step)
        validation = {}
        if step % every == 0 or last:
            window.flush()
            validation = workload.validate((state.eval_params, state.model_state))
        if validation:
            log.write(step, "validation", validation)
            window.restart_clock()
        if validation or last or (config.save_every and step % config.save_every == 0):
            window.flush()  # a stop after a checkpoint leaves no gap in the log
            checkpoints.save(step, state, batches, validation or None)
    window.flush()


class _Window:
    """Sums metrics between two log lines, and writes them one step late, so that the device never waits for us."""

    def __init__(self, log, unit):
        self._log, self._unit = log, unit
        self._total, self._pending = None, None
        self._clock = None

    def add(self, metrics):
        self._total = metrics_lib.add(self._total, metrics)

    def close(self, step):
        """Marks the window's end at `step`; `flush` writes it."""
        self._pending = (step, self._total)
        self._total = None

    def flush(self):
        if self._pending is None:
            return
        step, total = self._pending
        values = metrics_lib.means(total)
        now = time.perf_counter()
        if self._clock is not None:
            values[f"{self._unit}_per_second"] = float(total["loss"][1]) / (now - self._clock)
        self._clock, self._pending = now, None
        self._log.write(step, "train", values)

    def restart_clock(self):
        self._clock = None if self._total else time.perf_counter()
