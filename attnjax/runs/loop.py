"""The training loop: step, log, validate, save."""

import contextlib
import dataclasses
import itertools
import math
import shlex
import time
from collections.abc import Iterator
from pathlib import Path

import jax
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from attnjax.errors import Diverged, WriteError
from attnjax.inspection import parameters
from attnjax.inspection.peaks import peak_tflops
from attnjax.nn.kernels import resolve_precision
from attnjax.runs import folder
from attnjax.runs.checkpoint import Checkpoints, check_keep, has_checkpoint
from attnjax.runs.compilation import CompiledStep
from attnjax.runs.experiment import Experiment
from attnjax.runs.initialise import initialise
from attnjax.runs.locking import locked
from attnjax.runs.log import RunLog
from attnjax.runs.monitor import Monitor
from attnjax.runs.profiling import Profile
from attnjax.runs.stopping import Stop, watch_signals
from attnjax.training.state import TrainState


def train(config: ConfigDict, workdir: Path, *, profile: Profile | None = None) -> None:
    """Trains to the last step, resuming from the folder's latest intact checkpoint if there is one.

    Nothing is written before everything that the config asks for is known to exist and to fit; UserError if it does
    not. SIGTERM and SIGINT end it by SystemExit, after saving the last step; a resumed run is bit for bit the run that
    was never stopped. WriteError if the folder cannot be written to; Diverged if loss or gradient become non-finite.
    """
    config.precision = resolve_precision(config.precision)
    folder.check_same_config(workdir, config)
    experiment = Experiment.from_config(config, workdir)
    folder.check_same_data(workdir, experiment.task)
    check_keep(config.keep_checkpoints)
    state, notes = _first_state(experiment, workdir)
    batches = experiment.task.batches()
    if jax.process_count() > 1:  # no process writes while another still looks at what is there
        multihost_utils.sync_global_devices("looked")
    try:
        with locked(workdir) if jax.process_index() == 0 else contextlib.nullcontext():
            folder.check_same_config(workdir, config)  # another training may have begun and ended here meanwhile
            _train(experiment, workdir, state, batches, notes, profile)
    finally:
        batches.close()


def _first_state(experiment, workdir):
    """Returns the state before the first step, and lines on where it comes from."""
    config, devices, notes = experiment.config, experiment.devices, [f"new run, seed {experiment.config.seed}"]
    if has_checkpoint(workdir) or not (config.init_from or config.get("encoder_from")):
        return devices.create(experiment.create_state), notes
    classes = getattr(experiment.task, "classes", None)
    state, changes = initialise(experiment.create_state(), config, classes)
    source = [f"initialised from {config.init_from}"] if config.init_from else []
    return devices.place(state), [*notes, *source, *changes]


def _train(experiment, workdir, state, batches, notes, profile):
    config = experiment.config
    with contextlib.ExitStack() as closing:
        # To the end, as closing may wait for a save.
        stop = closing.enter_context(watch_signals(several=jax.process_count() > 1))
        checkpoints = Checkpoints(workdir, config.best_metric, keep=config.keep_checkpoints)
        closing.callback(checkpoints.close)
        try:
            folder.write_description(workdir, experiment)
            sums = {}
            if start := checkpoints.latest or 0:
                state, sums = checkpoints.restore(start, state, batches), checkpoints.sums(start)
                notes = [*checkpoints.damage, f"resumed from step {start:,} of {workdir}"]
            log = RunLog(workdir, start, experiment.steps)
            closing.callback(log.close)
            peak = peak_tflops(jax.devices()[0].device_kind, config.precision)
            monitor = Monitor(log, experiment.task.unit, sums, peak)
            _Loop(experiment, workdir, checkpoints, log, monitor, stop, profile).run(state, batches, start, notes)
        except WriteError as error:
            with contextlib.suppress(WriteError):
                checkpoints.wait()
            intact = ", ".join(f"{step:,}" for step in checkpoints.intact())
            there = f"earlier checkpoints are intact: {intact}" if intact else "there is no earlier checkpoint"
            raise WriteError(f"{error}; {there}") from error
        except Diverged as error:
            checkpoints.wait()
            good = f"the last good checkpoint is that of step {checkpoints.latest:,}" if checkpoints.latest else ""
            raise Diverged(f"{error}; {good or 'there is no checkpoint'}") from None


@dataclasses.dataclass(frozen=True)
class _Loop:
    experiment: Experiment
    workdir: Path
    checkpoints: Checkpoints
    log: RunLog
    monitor: Monitor
    stop: Stop
    profile: Profile | None

    def run(self, state: TrainState, batches: Iterator, start: int, notes: list[str]) -> None:
        """Takes the steps after `start`; SystemExit if it was asked to stop."""
        steps, began = self.experiment.steps, time.perf_counter()
        count = parameters.count(state.params)
        summary = {"steps": steps, "parameters": count, "devices": str(self.experiment.devices)}
        folder.write_summary(self.workdir, summary | {"finished": start == steps})
        for line in (*self._header(state.params), *notes):
            self.log.message(line)
        stopped = self._take_steps(state, batches, range(start + 1, steps + 1))
        self.checkpoints.wait()
        if stopped:
            again = f"to resume: python experiments/train.py --workdir {shlex.quote(str(self.workdir))}"
            self.log.message(f"stopped by {self.stop.name} after step {stopped:,}, which is saved; {again}")
            raise SystemExit(self.stop.exit_code)
        folder.write_summary(self.workdir, summary | {"finished": True})
        self.log.table(self._closing_rows(time.perf_counter() - began))

    def _take_steps(self, state, batches, steps):
        """Returns the step at which it was stopped and saved, None after the last one."""
        config, task, monitor = self.experiment.config, self.experiment.task, self.monitor
        every = evaluation_steps(config, task.steps_per_epoch)
        if self.profile:
            self.profile.check(steps)
        if not steps:
            return None
        first = next(batches)
        train_step, feed = self._compile(state, first), itertools.chain([first], batches)
        for step in steps:
            asked = time.perf_counter()
            batch = next(feed)
            waited = time.perf_counter() - asked
            if self.profile:
                self.profile.before(step)
            state, metrics = train_step(state, batch)
            if self.profile and self.profile.after(step, metrics):
                self.log.message(f"profile     steps {self.profile.first} to {step}, in {self.profile.folder}")
            monitor.settle()  # the step before, while the device computes this one
            monitor.add(step, batch, metrics, operations=train_step.operations(batch), waited=waited)
            last = step == steps[-1]
            if step % config.log_every == 0 or step % every == 0 or last:
                monitor.close_window(step)
            validation = {}
            if step % every == 0 or last:
                monitor.settle()
                validation = task.validate((state.eval_params, state.model_state))
            if validation:
                self.log.write(step, "validation", validation)
                monitor.restart_clock()
            stopped = self.stop.asked(step) and not last
            if validation or last or stopped or (config.save_every and step % config.save_every == 0):
                monitor.settle()  # no checkpoint of a step that diverged, no gap in the log after a stop
                self.checkpoints.save(step, state, batches, validation or None, monitor.sums())
            if stopped:
                return step
        return None

    def _compile(self, state, batch):
        """Returns the training step, compiled for all shapes of batches, of which `batch` has one."""
        shapes = self.experiment.task.batch_shapes(batch)
        many = f"for {len(shapes)} shapes of batches" if len(shapes) > 1 else ""
        self.log.message(f"compiling   the training step {many}".rstrip())
        began = time.perf_counter()
        train_step = CompiledStep(self.experiment.devices, self.experiment.train_step, state, shapes)
        self.log.message(f"compiled    in {time.perf_counter() - began:.1f} s")
        for (kernel, reason), layers in train_step.attention.items():
            self.log.message(f"attention   {kernel} in {layers} layer{'s' * (layers > 1)}: {reason}")
        return train_step

    def _header(self, params):
        experiment = self.experiment
        yield f"devices     {experiment.devices}"
        yield f"precision   {experiment.config.precision}, parameters and optimizer float32"
        yield f"model       {experiment.config.model.name}, {parameters.count(params):,} parameters"
        for name, count in parameters.count_by_part(params).items():
            yield f"            {count:>12,} {name}"
        yield from experiment.task.header
        epochs = experiment.steps / experiment.task.steps_per_epoch
        yield f"steps       {experiment.steps:,} ({epochs:.1f} epochs)"
        yield f"run folder  {self.workdir}"

    def _closing_rows(self, seconds):
        checkpoints = self.checkpoints
        steps = f"{self.experiment.steps:,}"
        rows = {"run folder": str(self.workdir), "steps": steps, "seconds since this start": f"{seconds:.0f}"}
        for name, step in (("best", checkpoints.best), ("last", checkpoints.latest)):
            if checkpoints.best is not None:
                metrics = _words(checkpoints.metrics(step))
                rows[f"validation, {name} checkpoint"] = f"{metrics}, step {step:,}"
        return rows


def evaluation_steps(config: ConfigDict, steps_per_epoch: int) -> int:
    """Returns the steps between evaluations: `eval_every`, else one epoch or more, of `log_every` steps at least.

    A count of steps, not of seconds, so that a resumed run is evaluated where it would have been without the stop.
    """
    return config.eval_every or steps_per_epoch * math.ceil(config.log_every / steps_per_epoch)


def _words(metrics):
    return ", ".join(f"{name} {value:.4f}" for name, value in metrics.items()) if metrics else "not validated"
