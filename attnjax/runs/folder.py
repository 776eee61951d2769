"""A run folder: config.json, the task's files, checkpoints, logs; enough to resume, evaluate or predict."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
from ml_collections import ConfigDict

from attnjax import config as config_lib
from attnjax.errors import UserError
from attnjax.files import write_atomically, writing
from attnjax.formatting import file_name
from attnjax.runs.checkpoint import AVERAGE, Checkpoints
from attnjax.runs.experiment import Experiment, make_devices
from attnjax.tasks import Task
from attnjax.training import devices as devices_lib

CONFIG_FILE = "config.json"
DATA_FILE = "data.json"
SUMMARY_FILE = "summary.json"


def write_description(workdir: Path, experiment: Experiment) -> None:
    """Makes the run folder and writes everything but its checkpoints, config.json last: it marks a run folder.

    data.json says which data the training began with; it is missing where no data was open.
    """
    if jax.process_index():
        return
    task = experiment.task
    with writing(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        task.save(workdir)
        if task.data.opened and not (workdir / DATA_FILE).exists():
            write_atomically(workdir / DATA_FILE, json.dumps(task.fingerprint(), indent=2) + "\n")
        config_lib.save(experiment.config, workdir / CONFIG_FILE)


def write_summary(workdir: Path, summary: dict[str, Any]) -> None:
    """Writes the run's number of `steps`, of `parameters`, its `devices`, and whether it has `finished`."""
    if jax.process_index():
        return
    with writing(workdir):
        write_atomically(workdir / SUMMARY_FILE, json.dumps(summary, indent=2) + "\n")


def evaluation_path(
    workdir: Path, split: str, checkpoint: str = "best", overrides: Mapping[str, Any] | None = None
) -> Path:
    """Returns the file of a split's metrics at a checkpoint: each combination with `overrides` has its own."""
    chosen = [] if checkpoint == "best" else [checkpoint]
    key = ",".join([split, *chosen, *(f"{field}={value}" for field, value in (overrides or {}).items())])
    return workdir / f"evaluation_{file_name(key)}.json"


def check_same_data(workdir: Path, task: Task) -> None:
    """Raises UserError if the data are not those that the folder's run began with; names the first difference."""
    path = workdir / DATA_FILE
    if not path.exists():
        return
    try:
        old = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"'{path}' is damaged: {error}") from None
    new = task.fingerprint()
    for name in sorted(old.keys() | new.keys()):
        # Any number of processes shares the same global batches.
        if name != "processes" and old.get(name) != new.get(name):
            raise UserError(
                f"the data are not those that the run in '{workdir}' began with: {name}: {old.get(name)} -> "
                f"{new.get(name)}. Bring them back, or use another --workdir"
            )


def check_same_config(workdir: Path, config: ConfigDict) -> None:
    """Raises UserError if the folder holds a run of another config; says how they differ."""
    if not (workdir / CONFIG_FILE).exists():
        return
    if changed := config_lib.differences(config_lib.read(workdir / CONFIG_FILE), config):
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise UserError(
            f"'{workdir}' holds a run of another config ({'; '.join(changed[:3])}{more}). "
            f"Use another --workdir, or start from its weights by --config.init_from={workdir}"
        )


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


def open_run(workdir: Path | str, checkpoint: str = "best") -> Run:
    """Opens a run folder at a checkpoint: "best" by validation (else the latest), "latest", "average" or a step.

    "average" has the mean weights of the last `config.keep_checkpoints`, and the step of the latest. Where there are
    not as many devices as the run was trained on, it is data parallel over those there are.
    """
    workdir = Path(workdir)
    if not workdir.is_dir():
        raise UserError(f"no run folder '{workdir}'")
    config = config_lib.read(workdir / CONFIG_FILE)
    try:
        devices = make_devices(config)
    except UserError:
        devices = devices_lib.make()
    experiment = Experiment.from_run(config, workdir, devices=devices)
    checkpoints = Checkpoints(workdir, config.best_metric, keep=config.keep_checkpoints, read_only=True)
    steps = checkpoints.last() if checkpoint == AVERAGE else [checkpoints.choose(checkpoint)]
    like = experiment.state_shapes()
    states = [checkpoints.restore(step, like) for step in steps]
    checkpoints.close()
    params = jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *(state.eval_params for state in states))
    return Run(experiment, steps[-1], params, states[-1].model_state)
