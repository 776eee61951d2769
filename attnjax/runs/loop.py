"""The training loop: step, log, validate, save."""

import contextlib
import functools
import math
import time
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from attnjax import tasks as workloads
from attnjax.errors import Diverged, UserError, WriteError
from attnjax.inspection import parameters
from attnjax.runs import folder as run
from attnjax.runs import initialise as transfer
from attnjax.runs import log as metrics_lib
from attnjax.runs.checkpoint import Checkpoints, check_keep, has_checkpoint
from attnjax.runs.locking import locked
from attnjax.runs.stopping import watch_signals
from attnjax.training import devices as parallel
from attnjax.training.optimizer import make_optimizer, make_schedule
from attnjax.training.step import make_train_step


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
    """Trains to the last step, going on from the folder's latest sound checkpoint if there is one.

    Nothing is written before all that the config asks for is known to be there and to fit; UserError if it is not.
    SIGTERM and SIGINT end it by SystemExit, with the last step taken saved; resumed, it is the run that it would have
    been. WriteError where the folder cannot be written to; Diverged where loss or gradient are no numbers any more.
    """
    run.check_same_config(workdir, config)
    workload = workloads.for_training(config, workdir)
    run.check_same_data(workdir, workload)
    check_keep(config.keep_checkpoints)
    steps = _steps(config, workload.steps_per_epoch)
    schedule = make_schedule(config.optimizer, steps)
    optimizer = make_optimizer(config.optimizer, schedule)
    train_step = make_train_step(workload.task, optimizer, schedule, config.ema_decay, config.accumulate)
    devices = parallel.of(config)
    state, report = _first_state(config, workdir, devices, functools.partial(run.create_state, workload, optimizer))

    batches = workload.batches()
    if jax.process_count() > 1:  # none writes while another still looks at what is there
        multihost_utils.sync_global_devices("looked")
    try:
        with locked(workdir) if jax.process_index() == 0 else contextlib.nullcontext():
            run.check_same_config(workdir, config)  # another training may have begun and ended here meanwhile
            _train(workload, devices, train_step, state, batches, workdir, steps, report)
    finally:
        batches.close()


def _first_state(config, workdir, devices, create):
    """Returns the state before the first step, and lines on where it is from."""
    if has_checkpoint(workdir) or not (config.init_from or config.get("encoder_from")):
        return devices.create(create), [f"new run, seed {config.seed}"]
    state, changes = transfer.initialise(create(), config)
    report = [f"initialised from {config.init_from}"] if config.init_from else []
    return devices.place(state), [f"new run, seed {config.seed}", *report, *changes]


def _train(workload, devices, train_step, state, batches, workdir, steps, report):
    config = workload.config
    with contextlib.ExitStack() as closing:
        # To the end, as closing may wait for a save.
        stop = closing.enter_context(watch_signals(several=jax.process_count() > 1))
        checkpoints = Checkpoints(workdir, config.best_metric, keep=config.keep_checkpoints)
        closing.callback(checkpoints.close)
        try:
            run.write_description(workdir, workload)
            window = {}
            if start := checkpoints.latest or 0:
                state, window = checkpoints.restore(start, state, batches), checkpoints.window(start)
                report = [*checkpoints.damage, f"resumed from step {start:,} of {workdir}"]
            log = metrics_lib.RunLog(workdir, start, steps)
            closing.callback(log.close)
            count = parameters.count(state.params)
            summary = {"steps": steps, "parameters": count, "devices": parallel.describe(devices)}
            run.write_summary(workdir, summary | {"finished": start == steps})
            _header(log, workload, devices, workdir, state.params, steps)
            for line in report:
                log.message(line)
            began = time.perf_counter()
            taking = range(start + 1, steps + 1)
            compiled = devices.train_step(train_step)
            stopped = _take_steps(workload, compiled, state, batches, checkpoints, log, taking, window, stop)
            checkpoints.wait()
            if stopped:
                again = f"to go on: python experiments/train.py --workdir {workdir}"
                log.message(f"stopped by {stop.name} after step {stopped:,}, which is saved; {again}")
                raise SystemExit(stop.exit_code)
            run.write_summary(workdir, summary | {"finished": True})
            log.table(_closing_rows(workdir, checkpoints, steps, time.perf_counter() - began))
        except WriteError as error:
            with contextlib.suppress(WriteError):
                checkpoints.wait()
            intact = ", ".join(f"{step:,}" for step in checkpoints.sound())
            there = f"earlier checkpoints are intact: {intact}" if intact else "there is no earlier checkpoint"
            raise WriteError(f"{error}; {there}") from error


def _take_steps(workload, train_step, state, batches, checkpoints, log, steps, window, stop):
    """Takes the steps; returns the one at which it was stopped and saved, None if it came to the last one."""
    config = workload.config
    every = config.eval_every or workload.steps_per_epoch
    window = _Window(log, workload.unit, window)
    guard = _Guard(log, checkpoints)
    for step in steps:
        batch = next(batches)
        state, metrics = train_step(state, batch)
        guard.check()  # the step before, while the device works on this one, as is its log line
        window.flush()
        guard.add(step, batch, metrics)
        window.add(metrics)
        last = step == steps[-1]
        if step % config.log_every == 0 or last:
            window.close(step)
        validation = {}
        if step % every == 0 or last:
            guard.check()
            window.flush()
            validation = workload.validate((state.eval_params, state.model_state))
        if validation:
            log.write(step, "validation", validation)
            window.restart_clock()
        stopped = stop.asked(step) and not last
        if validation or last or stopped or (config.save_every and step % config.save_every == 0):
            guard.check()  # no checkpoint of a step before its gradient is known to be sound
            window.flush()  # a stop after a checkpoint leaves no gap in the log
            checkpoints.save(step, state, batches, validation or None, window.sums())
        if stopped:
            return step
    return None


class _Guard:
    """Stops a training whose loss or gradient is not finite; looks at a step while the next one runs."""

    def __init__(self, log, checkpoints):
        self._log, self._checkpoints = log, checkpoints
        self._step = None

    def add(self, step, batch, metrics):
        self._step = (step, batch, metrics)

    def check(self):
        """Raises Diverged, and keeps the batch, if the step last added had no finite loss or gradient norm."""
        if self._step is None:
            return
        (step, batch, metrics), self._step = self._step, None
        names = ("loss", "gradient_norm", "learning_rate")
        loss, norm, rate = (total / max(weight, 1e-9) for total, weight in jax.device_get([metrics[n] for n in names]))
        if math.isfinite(loss) and math.isfinite(norm):
            return
        self._checkpoints.wait()
        latest = self._checkpoints.latest
        raise Diverged(
            f"step {step:,} diverged: loss {loss:g}, gradient norm {norm:g}, learning rate {rate:g}; its batch is kept "
            f"in {self._log.keep_batch(step, batch)}; "
            + (f"the last good checkpoint is that of step {latest:,}" if latest else "there is no checkpoint")
        )


class _Window:
    """Sums metrics between two log lines, and writes them one step late, so that the device never waits for us."""

    def __init__(self, log, unit, sums):
        self._log, self._unit = log, unit
        # Of the type they had, so that the means are the same bits as without a stop.
        types = {int: np.int32, float: np.float32}
        self._total = {name: tuple(types[type(x)](x) for x in pair) for name, pair in sums.items()} or None
        self._pending = None
        self._clock = None

    def add(self, metrics):
        self._total = metrics_lib.add(self._total, metrics)

    def sums(self):
        """Returns the sums since the last log line as plain numbers, for a checkpoint."""
        return {name: [x.item() for x in pair] for name, pair in jax.device_get(self._total or {}).items()}

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
