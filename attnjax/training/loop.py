"""The training loop: step, log, validate, save."""

import math
import time
from pathlib import Path

from ml_collections import ConfigDict

from attnjax import data
from attnjax.analysis import parameters
from attnjax.errors import UserError
from attnjax.training import metrics as metrics_lib
from attnjax.training import parallel, run
from attnjax.training import state as state_lib
from attnjax.training.checkpoint import Checkpoints, has_checkpoint
from attnjax.training.optimizer import make_optimizer, make_schedule
from attnjax.training.step import make_eval_step, make_train_step
from attnjax.weights import transfer


def evaluate(eval_step, variables, batches) -> dict[str, float]:
    """Returns the mean of each metric over all examples of `batches`, each counted once."""
    total = None
    for batch in batches:
        total = metrics_lib.add(total, eval_step(variables, batch))
    return metrics_lib.means(total)


def _steps(config, examples):
    """Returns the steps of the run and of one epoch."""
    per_epoch = math.ceil(examples * config.data.augment.repeats / config.batch_size)
    steps = config.steps or math.ceil(config.epochs * per_epoch)
    if steps <= 0:
        raise UserError(f"nothing to train: steps={config.steps}, epochs={config.epochs}; one must be positive")
    return steps, per_epoch


def _header(log, config, workdir, params, sources, steps, per_epoch):
    parts = parameters.count_by_part(params)
    log.message(f"devices     {parallel.describe()}")
    log.message(f"model       {config.model.name}, {parameters.count(params):,} parameters")
    for name, count in parts.items():
        log.message(f"            {count:>12,} {name}")
    for split, source in sources.items():
        log.message(f"{split:<11} {len(source):,} images of {len(source.classes)} classes, {config.data.source}")
    log.message(f"steps       {steps:,} of {config.batch_size} images ({steps / per_epoch:.1f} epochs)")
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
    parallel.check_batch_size("batch_size", config.batch_size)
    parallel.check_batch_size("eval_batch_size", config.eval_batch_size)
    sources = {"train": data.open_split(config, config.data.train)}
    if config.data.validation:
        sources["validation"] = data.open_split(config, config.data.validation)
    classes = sources["train"].classes
    steps, per_epoch = _steps(config, len(sources["train"]))

    task = run.build_task(config, len(classes))
    schedule = make_schedule(config.optimizer, steps)
    optimizer = make_optimizer(config.optimizer, schedule)
    train_step = make_train_step(task, optimizer, schedule, config.ema_decay)
    batches = data.train_iterator(config, sources["train"])
    state = state_lib.create(task, optimizer, run.image_shape(config), config.seed, ema=config.ema_decay > 0)
    report = [f"new run, seed {config.seed}"]
    if config.init_from and not has_checkpoint(workdir):
        state, changes = transfer.initialise(state, config)
        report = [f"new run, initialised from {config.init_from}", *changes]

    run.write_description(workdir, config, classes)
    checkpoints = Checkpoints(workdir, config.best_metric)
    if start := checkpoints.latest or 0:
        state = checkpoints.restore(start, state, batches)
        report = [f"resumed from step {start:,} of {workdir}"]
    log = metrics_lib.RunLog(workdir, start, steps)
    try:
        _header(log, config, workdir, state.params, sources, steps, per_epoch)
        for line in report:
            log.message(line)
        began = time.perf_counter()
        validate = _validation(config, task, sources.get("validation"), config.eval_every or per_epoch, steps)
        _take_steps(config, train_step, state, batches, validate, checkpoints, log, range(start + 1, steps + 1))
        checkpoints.wait()
        log.table(_closing_rows(workdir, checkpoints, steps, time.perf_counter() - began))
    finally:
        log.close()
        checkpoints.close()


def _validation(config, task, source, every, last):
    """Returns validate(step, state) -> metrics, or None at steps without a validation."""
    eval_step = parallel.data_parallel(make_eval_step(task))

    def validate(step, state):
        if source is None or (step % every and step != last):
            return None
        return evaluate(eval_step, (state.eval_params, state.model_state), data.eval_batches(config, source))

    return validate


def _take_steps(config, train_step, state, batches, validate, checkpoints, log, steps):
    train_step = parallel.data_parallel(train_step, donate=True)
    window = _Window(log, config.batch_size)
    for step in steps:
        state, metrics = train_step(state, next(batches))
        window.flush()  # of the step before, while the device works on this one
        window.add(metrics)
        last = step == steps[-1]
        if step % config.log_every == 0 or last:
            window.close(step)
        if validation := validate(step, state):
            window.flush()
            log.write(step, "validation", validation)
            window.restart_clock()
        if validation or last or (config.save_every and step % config.save_every == 0):
            checkpoints.save(step, state, batches, validation)
    window.flush()


class _Window:
    """Sums metrics between two log lines, and writes them one step late, so that the device never waits for us."""

    def __init__(self, log, batch_size):
        self._log, self._batch_size = log, batch_size
        self._total, self._pending, self._count = None, None, 0
        self._clock = None

    def add(self, metrics):
        self._total = metrics_lib.add(self._total, metrics)
        self._count += 1

    def close(self, step):
        """Marks the window's end at `step`; `flush` writes it."""
        self._pending = (step, self._total, self._count)
        self._total, self._count = None, 0

    def flush(self):
        if self._pending is None:
            return
        step, total, count = self._pending
        values = metrics_lib.means(total)
        now = time.perf_counter()
        if self._clock is not None:
            values["images_per_second"] = count * self._batch_size / (now - self._clock)
        self._clock, self._pending = now, None
        self._log.write(step, "train", values)

    def restart_clock(self):
        self._clock = None if self._count else time.perf_counter()
