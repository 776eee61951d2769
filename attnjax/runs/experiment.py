"""An experiment, built once from its config: devices, task (data, model, objective), optimizer and schedule."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from pathlib import Path

import jax
import optax
from ml_collections import ConfigDict

from attnjax import config as config_lib
from attnjax import models, tasks
from attnjax.errors import UserError
from attnjax.nn.kernels import resolve_precision
from attnjax.runs.reader import has_checkpoint
from attnjax.tasks import Task
from attnjax.tasks.classification import ClassificationTask
from attnjax.training import devices as devices_lib
from attnjax.training import state as state_lib
from attnjax.training.devices import Devices
from attnjax.training.optimizer import OptimizerOptions, make_optimizer, make_schedule
from attnjax.training.state import TrainState
from attnjax.training.step import TrainStep


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Everything that a config describes. steps: how many the training takes; 0 where nothing is to be trained."""

    config: ConfigDict
    devices: Devices
    task: Task
    steps: int = 0

    @classmethod
    def from_config(cls, config: ConfigDict, workdir: Path, *, devices: Devices | None = None) -> "Experiment":
        """Returns the experiment with its data open for training; UserError for anything missing or impossible."""
        config_lib.check(config)
        config.precision = resolve_precision(config.precision)
        devices = devices or make_devices(config)
        # What an earlier start left in a folder without a checkpoint belongs to no run.
        task = tasks.for_training(config, devices, workdir if has_checkpoint(workdir) else None)
        steps = config.steps or math.ceil(config.epochs * task.steps_per_epoch)
        if not 0 < steps < 2**31:
            raise UserError(
                f"{steps} steps, of steps={config.steps}, epochs={config.epochs}: one must be positive, and below 2^31"
            )
        return cls(config, devices, task, steps)

    @classmethod
    def from_run(cls, config: ConfigDict, workdir: Path, *, devices: Devices | None = None) -> "Experiment":
        """Returns the experiment of a run folder, to evaluate or predict with; needs no data."""
        config.precision = resolve_precision(config.precision)
        devices = devices or make_devices(config)
        return cls(config, devices, tasks.from_run(config, devices, workdir))

    @classmethod
    def classifier(cls, config: ConfigDict, classes: Sequence[str], *, devices: Devices | None = None) -> "Experiment":
        """Returns the experiment of an image classifier with no data open, as converted weights need it."""
        config.precision = resolve_precision(config.precision)
        devices = devices or make_devices(config)
        return cls(config, devices, ClassificationTask.with_classes(config, devices, tuple(classes)))

    @functools.cached_property
    def schedule(self) -> optax.Schedule:
        """Step (from 0) -> learning rate."""
        return make_schedule(OptimizerOptions(**self.config.optimizer), self.steps)

    @functools.cached_property
    def optimizer(self) -> optax.GradientTransformation:
        return make_optimizer(OptimizerOptions(**self.config.optimizer), self.schedule)

    @property
    def train_step(self) -> TrainStep:
        """The training step, to be compiled by `devices.train_step`."""
        config, task = self.config, self.task
        options = (config.ema_decay, config.accumulate, task.prepare)
        return TrainStep(task.objective, self.optimizer, self.schedule, *options)

    def create_state(self) -> TrainState:
        """Returns the state at step 0, on the first device."""
        task, ema = self.task, self.config.ema_decay > 0
        return state_lib.create(task.objective, self.optimizer, task.example, self.config.seed, ema=ema)

    def state_shapes(self) -> TrainState:
        """Returns the shapes of the training state; makes no arrays."""
        return jax.eval_shape(self.create_state)


def make_devices(config: ConfigDict, over: tuple[jax.Device, ...] = ()) -> Devices:
    """Returns all devices, or those of `over`, as the `parallel` group says, with the sharding rules of the model."""
    rules = models.lookup(config.model.name).rules if "name" in config.model else None  # `models.build` refuses it
    return devices_lib.make(**config.parallel, rules=rules, over=over)
