"""A run folder: config.json, the task's files, checkpoints, logs; enough to resume, evaluate or predict."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
from ml_collections import ConfigDict

from attnjax import config as config_lib
from attnjax.errors import UserError
from attnjax.files import check_name, write_json, writing
from attnjax.formatting import file_name
from attnjax.runs import description
from attnjax.runs.checkpoint import Checkpoints
from attnjax.runs.experiment import Experiment, make_devices
from attnjax.runs.reader import AVERAGE, CheckpointReader, Replaced
from attnjax.training import devices as devices_lib
from attnjax.training.state import TrainState

SUMMARY_FILE = "summary.json"
_ATTEMPTS = 10  # to read a checkpoint while a training replaces them


def write_summary(workdir: Path, summary: dict[str, Any]) -> None:
    """Writes the run's number of `steps`, of `parameters`, its `devices`, and whether it has `finished`."""
    if jax.process_index():
        return
    with writing(workdir):
        write_json(workdir / SUMMARY_FILE, summary)


def evaluation_path(
    workdir: Path, split: str, checkpoint: str = "best", overrides: Mapping[str, Any] | None = None
) -> Path:
    """Returns the file of a split's metrics at a checkpoint: each combination with `overrides` has its own."""
    chosen = [] if checkpoint == "best" else [checkpoint]
    key = ",".join([split, *chosen, *(f"{field}={value}" for field, value in (overrides or {}).items())])
    return workdir / f"evaluation_{file_name(key)}.json"


def save_weights(workdir: Path, experiment: Experiment, state: TrainState) -> None:
    """Makes a run folder of weights that were not trained in it; the checkpoint, which makes it a run, comes last."""
    record = description.write_description(workdir, experiment)
    checkpoints = Checkpoints(workdir, experiment.config.best_metric)
    checkpoints.save_weights(state, record)
    checkpoints.close()


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained model with what is needed to use it. params are the averaged weights if the run averages."""

    experiment: Experiment
    step: int
    params: dict
    model_state: dict

    @property
    def config(self) -> ConfigDict:
        return self.experiment.config

    @property
    def task(self) -> Any:
        """The task, of the kind that `expect` checks for."""
        return self.experiment.task

    @property
    def objective(self) -> Any:
        return self.task.objective

    @property
    def model(self) -> nn.Module:
        return self.objective.model

    @property
    def variables(self) -> tuple[dict, dict]:
        return self.params, self.model_state

    def expect(self, task: str) -> None:
        """Raises UserError if this is not a run of `task`."""
        if self.config.task != task:
            raise UserError(f"this is a run of {self.config.task}, not of {task}")


def open_run(workdir: Path | str, checkpoint: str = "best", *, accept_changes: bool = False) -> Run:
    """Opens a run folder at a checkpoint: "best" by validation (else the latest), "latest", "average" or a step.

    "average" has the mean weights of the last `config.keep_checkpoints`, and the step of the latest. Where there are
    not as many devices as the run was trained on, it is data parallel over those there are. UserError if config.json
    or the task's files are not what the checkpoint was trained with, unless `accept_changes`.
    """
    workdir = Path(workdir)
    check_name(workdir)
    if not workdir.is_dir():
        raise UserError(f"no run folder '{workdir}'")
    for attempt in range(_ATTEMPTS):
        try:
            return _open(workdir, checkpoint, accept_changes)
        except Replaced as error:
            if attempt == _ATTEMPTS - 1:
                raise UserError(f"{error}: try again, or let the run keep more (keep_checkpoints)") from None
    raise AssertionError


def _open(workdir, checkpoint, accept_changes):
    config = config_lib.read(workdir / description.CONFIG_FILE)
    reader = CheckpointReader(workdir, config.best_metric, keep=config.keep_checkpoints)
    steps = reader.last() if checkpoint == AVERAGE else [reader.choose(checkpoint)]
    if not accept_changes:
        description.check_unchanged(reader.record(steps[-1]), workdir, config)
    try:
        devices = make_devices(config)
    except UserError:
        devices = devices_lib.make()
    experiment = Experiment.from_run(config, workdir, devices=devices)
    states = [reader.restore(step, experiment.state_shapes()) for step in steps]
    params = jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *(state.eval_params for state in states))
    return Run(experiment, steps[-1], params, states[-1].model_state)
