"""A run folder: config.json, what the workload needs, checkpoints, logs; enough to go on, evaluate or predict."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import optax
from ml_collections import ConfigDict

from attnjax import config as config_lib
from attnjax import tasks as workloads
from attnjax.errors import UserError
from attnjax.files import write_atomically, writing
from attnjax.runs.checkpoint import AVERAGE, Checkpoints
from attnjax.training import state as state_lib
from attnjax.training.optimizer import make_optimizer, make_schedule

DATA_FILE = "data.json"
SUMMARY_FILE = "summary.json"


def create_state(workload, optimizer: optax.GradientTransformation) -> state_lib.TrainState:
    """Returns the state at step 0."""
    config = workload.config
    return state_lib.create(workload.task, optimizer, workload.example, config.seed, ema=config.ema_decay > 0)


def abstract_state(workload) -> state_lib.TrainState:
    """Returns the shapes of the training state; makes no arrays."""
    optimizer = make_optimizer(workload.config.optimizer, make_schedule(workload.config.optimizer, steps=0))
    return jax.eval_shape(functools.partial(create_state, workload, optimizer))


def write_description(workdir: Path, workload) -> None:
    """Makes the run folder and writes all but its checkpoints, config.json last: it marks a run folder.

    data.json says what data the training began with; there is none where the workload has no data open.
    """
    if jax.process_index():
        return
    with writing(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        workload.save(workdir)
        if workload.sources and not (workdir / DATA_FILE).exists():
            write_atomically(workdir / DATA_FILE, json.dumps(workload.fingerprint(), indent=2) + "\n")
        config_lib.save(workload.config, workdir / "config.json")


def write_summary(workdir: Path, summary: dict[str, Any]) -> None:
    """Writes of the run in the folder `steps` (all of them), `parameters`, `devices`, and if it has `finished`."""
    if jax.process_index():
        return
    with writing(workdir):
        write_atomically(workdir / SUMMARY_FILE, json.dumps(summary, indent=2) + "\n")


def read_summary(workdir: Path) -> dict[str, Any]:
    """Returns what `write_summary` wrote; nothing where no training has begun."""
    path = workdir / SUMMARY_FILE
    return json.loads(path.read_text()) if path.exists() else {}


def evaluation_path(workdir: Path, split: str, shuffled: bool = False) -> Path:
    """Returns the file of the metrics of a split; `shuffled`: of the control, given images of other examples."""
    name = "".join(c if c.isalnum() else "_" for c in split)
    return workdir / f"evaluation_{name}{'_shuffled' if shuffled else ''}.json"


def check_same_data(workdir: Path, workload) -> None:
    """Raises UserError if the data are not those that the folder's run began with; names the first difference."""
    path = workdir / DATA_FILE
    if not path.exists():
        return
    try:
        old = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"'{path}' is damaged: {error}") from None
    new = workload.fingerprint()
    for name in sorted(old.keys() | new.keys()):
        # Any number of processes shares the same global batches.
        if name != "processes" and old.get(name) != new.get(name):
            raise UserError(
                f"the data are not those that the run in '{workdir}' began with: {name}: {old.get(name)} -> "
                f"{new.get(name)}. Bring them back, or use another --workdir"
            )


def check_same_config(workdir: Path, config: ConfigDict) -> None:
    """Raises UserError if the folder holds a run of another config; says in what they differ."""
    if not (workdir / "config.json").exists():
        return
    if changed := config_lib.differences(config_lib.read(workdir / "config.json"), config):
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise UserError(
            f"'{workdir}' holds a run of another config ({'; '.join(changed[:3])}{more}). "
            f"Use another --workdir, or start from its weights by --config.init_from={workdir}"
        )


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained model with what is needed to use it. params are the averaged ones where the run averages."""

    workload: Any
    step: int
    params: dict
    model_state: dict

    @property
    def config(self) -> ConfigDict:
        return self.workload.config

    @property
    def task(self):
        return self.workload.task

    @property
    def variables(self) -> tuple[dict, dict]:
        return self.params, self.model_state

    def expect(self, task: str) -> None:
        """Raises UserError if this is not a run of `task`."""
        if self.config.task != task:
            raise UserError(f"this is a run of {self.config.task}, not of {task}")


def open_run(workdir: Path | str, checkpoint: str = "best") -> Run:
    """Opens a run folder at a checkpoint: "best" by validation (else the latest), "latest", "average" or a step.

    "average" has the mean weights of the last `config.keep_checkpoints`, and the step of the latest.
    """
    workdir = Path(workdir)
    if not workdir.is_dir():
        raise UserError(f"no run folder '{workdir}'")
    workload = workloads.from_run(config_lib.read(workdir / "config.json"), workdir)
    config, like = workload.config, abstract_state(workload)
    checkpoints = Checkpoints(workdir, config.best_metric, keep=config.keep_checkpoints, read_only=True)
    steps = checkpoints.last() if checkpoint == AVERAGE else [checkpoints.choose(checkpoint)]
    states = [checkpoints.restore(step, like) for step in steps]
    checkpoints.close()
    params = jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *(state.eval_params for state in states))
    return Run(workload, steps[-1], params, states[-1].model_state)
