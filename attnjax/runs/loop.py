"""The training loop: step, log, validate, save."""

import contextlib
import dataclasses
import math
import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from attnjax.errors import Diverged, UserError, WriteError
from attnjax.files import check_name
from attnjax.inspection import parameters
from attnjax.inspection.peaks import peak_tflops
from attnjax.nn.kernels import resolve_precision
from attnjax.runs import folder
from attnjax.runs.checkpoint import Checkpoints
from attnjax.runs.compilation import CompiledStep
from attnjax.runs.description import UNREADABLE, check_config, check_data, fingerprint, write_description
from attnjax.runs.experiment import Experiment
from attnjax.runs.initialise import initialise
from attnjax.runs.locking import locked
from attnjax.runs.log import RunLog
from attnjax.runs.monitor import Monitor
from attnjax.runs.profiling import Profile
from attnjax.runs.reader import check_keep, has_checkpoint, latest_record
from attnjax.runs.stopping import Stop, watch_signals
from attnjax.training.state import TrainState


def train(config: ConfigDict, workdir: Path, *, profile: Profile | None = None, accept_changes: bool = False) -> None:
    """Trains to the last step, resuming from the folder's latest intact checkpoint if there is one.

    Nothing is written before everything that the config asks for is known to exist and to fit; UserError if it does
    not, or if config, data or files are not those of the checkpoint, unless `accept_changes`. SIGTERM, SIGINT and
    SIGHUP end it by SystemExit, after saving the last step; a resumed run is bit for bit the run that was never
    stopped. WriteError if the folder cannot be written to; Diverged if loss or gradient become non-finite.
    """
    config.precision = resolve_precision(config.precision)
    check_name(workdir)
    if record := latest_record(workdir):
        check_config(record, workdir, config, accept=accept_changes)
    experiment = Experiment.from_config(config, workdir)
    check_keep(config.keep_checkpoints)
    state, notes = _first_state(experiment, workdir)
    batches = experiment.task.batches()
    if jax.process_count() > 1:  # no process writes while another still looks at what is there
        multihost_utils.sync_global_devices("looked")
    try:
        with locked(workdir) if jax.process_index() == 0 else contextlib.nullcontext():
            _train(experiment, workdir, state, batches, notes, profile, accept_changes)
    finally:
        batches.close()


def _first_state(experiment, workdir):
    """Returns the state before the first step, and lines on where it comes from; both are replaced on resuming."""
    config, devices = experiment.config, experiment.devices
    if has_checkpoint(workdir):
        return devices.create(experiment.create_state), []
    notes = [f"new run, seed {config.seed}"]
    if not (config.init_from or config.get("encoder_from")):
        return devices.create(experiment.create_state), notes
    classes = getattr(experiment.task, "classes", None)
    state, changes = initialise(experiment.create_state(), config, classes)
    source = [f"initialised from {config.init_from}"] if config.init_from else []
    return devices.place(state), [*notes, *source, *changes]


def _train(experiment, workdir, state, batches, notes, profile, accept_changes):
    config = experiment.config
    with contextlib.ExitStack() as closing:
        # To the end, as closing may wait for a save.
        stop = closing.enter_context(watch_signals(several=jax.process_count() > 1))
        checkpoints = Checkpoints(workdir, config.best_metric, keep=config.keep_checkpoints)
        closing.callback(checkpoints.close)
        try:
            start, record, data = checkpoints.latest, {}, fingerprint(experiment.task)
            if start is not None:
                record = checkpoints.record(start)
                # Again: another training may have begun and ended here since this one looked.
                accepted = check_config(record, workdir, config, accept=accept_changes)
                state = checkpoints.restore(start, state, batches)
                accepted += check_data(record, workdir, data, accept=accept_changes)
                notes = [*checkpoints.damage, *accepted, f"resumed from step {start:,} of {workdir}"]
            description = write_description(workdir, experiment, data)
            log = RunLog(workdir, start or 0, experiment.steps, record.get("rows", ()))
            closing.callback(log.close)
            peak = peak_tflops(jax.devices()[0].device_kind, config.precision)
            monitor = Monitor(log, experiment.task.unit, record.get("sums", {}), peak)
            loop = _Loop(experiment, workdir, checkpoints, log, monitor, stop, profile, description)
            loop.run(state, batches, start or 0, notes)
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
    description: dict[str, Any]  # for the checkpoints' records

    def run(self, state: TrainState, batches: Iterator, start: int, notes: list[str]) -> None:
        """Takes the steps after `start`; SystemExit if it was asked to stop."""
        steps, began = self.experiment.steps, time.perf_counter()
        count = parameters.count(state.params)
        summary = {"steps": steps, "parameters": count, "devices": str(self.experiment.devices)}
        folder.write_summary(self.workdir, summary | {"finished": start == steps and not self._left_to_validate(start)})
        lost = f"metrics.jsonl was damaged or changed: its rows up to step {start:,} are restored from the checkpoint"
        for line in (*self._header(state.params), *notes, *([lost] if self.log.restored else [])):
            self.log.message(line)
        stopped = self._take_steps(state, batches, start)
        self.checkpoints.wait()
        if stopped:
            again = f"to resume: python experiments/train.py --workdir {shlex.quote(str(self.workdir))}"
            self.log.message(f"stopped by {self.stop.name} after step {stopped:,}, which is saved; {again}")
            raise SystemExit(self.stop.exit_code)
        folder.write_summary(self.workdir, summary | {"finished": True})
        self.log.table(self._closing_rows(time.perf_counter() - began))

    def _take_steps(self, state, batches, start):
        """Returns the step at which it was stopped and saved, None after the last one."""
        steps, monitor = range(start + 1, self.experiment.steps + 1), self.monitor
        if self._left_to_validate(start) and self._validate_and_save(start, state, batches):
            return start
        if self.profile:
            self.profile.check(steps)
        train_step = None
        for step in steps:
            asked = time.perf_counter()
            with self._saving_if_unreadable(step - 1, state, batches):
                batch = next(batches)
            waited = time.perf_counter() - asked
            train_step = train_step or self._compile(state, batch)
            if self.profile:
                self.profile.before(step)
            state, metrics = train_step(state, batch)
            if self.profile and self.profile.after(step, metrics):
                self.log.message(f"profile     steps {self.profile.first} to {step}, in {self.profile.folder}")
            monitor.settle()  # the step before, while the device computes this one
            monitor.add(step, batch, metrics, operations=train_step.operations(batch), waited=waited)
            if step % self.experiment.config.log_every == 0 or step % self._every == 0 or step == steps[-1]:
                monitor.close_window(step)
            if self._validate_and_save(step, state, batches):
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

    def _left_to_validate(self, start):
        """Returns whether the training was stopped in the validation of the step that it resumes from."""
        return start > 0 and self._validates(start) and not self.log.has("validation", start)

    @property
    def _every(self):
        return evaluation_steps(self.experiment.config, self.experiment.task.steps_per_epoch)

    def _validates(self, step):
        due = step % self._every == 0 or step == self.experiment.steps
        return due and self.experiment.task.data.validation is not None

    def _validate_and_save(self, step, state, batches):
        """Validates and saves if the step is one to do so; returns whether the training stops at it."""
        last, validation = step == self.experiment.steps, {}
        if self._validates(step):
            self.monitor.settle()
            variables = (state.eval_params, state.model_state)
            with self._saving_if_unreadable(step, state, batches):
                validation = self.stop.unless_stopped(lambda: self.experiment.task.validate(variables))
        if validation:
            self.log.write(step, "validation", validation)
            self.monitor.restart_clock()
        # A training that was stopped in its last validation is not at its end.
        stopped = self.stop.asked(step) and not (last and validation is not None)
        if validation or last or stopped or self._save_is_due(step):
            self._save(step, state, batches, validation or None)
        return stopped

    def _save_is_due(self, step):
        """Returns whether to save a step that is not evaluated, by `save_every` or `save_minutes`."""
        config = self.experiment.config
        if config.save_every and step % config.save_every == 0:
            return True
        if not config.save_minutes or config.keep_checkpoints > 1:  # it would take the place of one for the average
            return False
        overdue = time.monotonic() - self.checkpoints.saved_at > 60 * config.save_minutes
        if jax.process_count() == 1:
            return overdue
        # All processes save together: the first one's clock decides, which is asked rarely as they wait for it.
        return step % config.log_every == 0 and bool(multihost_utils.broadcast_one_to_all(np.int32(overdue)))

    def _save(self, step, state, batches, validation, **more):
        self.monitor.settle()  # no checkpoint of a step that diverged, no gap in the log after a stop
        record = self.description | {"rows": list(self.log.rows), "sums": self.monitor.sums()} | more
        self.checkpoints.save(step, state, batches, validation, record)

    @contextlib.contextmanager
    def _saving_if_unreadable(self, step, state, batches):
        """Saves a step where an example that cannot be read ends the training: it may be repaired."""
        try:
            yield
        except WriteError:
            raise
        except UserError as error:
            if not step or jax.process_count() > 1:  # the other processes cannot save with this one
                raise
            self.checkpoints.wait()
            validation = self.checkpoints.metrics(step) if step in self.checkpoints.steps() else None
            self._save(step, state, batches, validation, **{UNREADABLE: str(error)})
            self.checkpoints.wait()
            skip = " (with --config.data.skip_corrupt=true to leave it out)"
            hint = skip if "skip_corrupt" in self.experiment.config.data else ""
            raise UserError(f"{error}; step {step:,} is saved: repair the file, then resume{hint}") from error

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
