"""A run folder: config.json, classes.json, checkpoints, logs; all that is needed to go on, evaluate or predict."""

import dataclasses
import json
from pathlib import Path

import jax
from ml_collections import ConfigDict

from attnjax import config as config_lib
from attnjax import models
from attnjax.errors import UserError
from attnjax.models.vit import patch_grid
from attnjax.tasks.classification import Classification
from attnjax.training import state as state_lib
from attnjax.training.checkpoint import Checkpoints
from attnjax.training.optimizer import make_optimizer, make_schedule


def image_shape(config: ConfigDict) -> tuple[int, int, int, int]:
    """Returns (1, H, W, C), the shape of one example."""
    return (1, *config.data.image_size, config.data.channels)


def build_task(config: ConfigDict, num_classes: int) -> Classification:
    """Returns the task with its model; UserError where the model cannot take the config's images."""
    model = models.build(config.model, num_classes)
    if config.model.name == "vit":
        patch_grid(tuple(config.data.image_size), config.model.patch_size)
    return Classification(model, config.label_smoothing)


def abstract_state(config: ConfigDict, task: Classification) -> state_lib.TrainState:
    """Returns the shapes of the training state; makes no arrays."""
    optimizer = make_optimizer(config.optimizer, make_schedule(config.optimizer, steps=0))
    return jax.eval_shape(
        lambda: state_lib.create(task, optimizer, image_shape(config), config.seed, ema=config.ema_decay > 0)
    )


def write_description(workdir: Path, config: ConfigDict, classes: tuple[str, ...]) -> None:
    """Makes the run folder and writes config.json and classes.json, config.json last: it marks a run folder."""
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "classes.json").write_text(json.dumps(classes) + "\n")
    config_lib.save(config, workdir / "config.json")


def check_same_config(workdir: Path, config: ConfigDict) -> None:
    """Raises UserError if the folder holds a run of another config; says in what they differ."""
    if changed := config_lib.differences(config_lib.read(workdir / "config.json"), config):
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise UserError(
            f"'{workdir}' holds a run of another config ({'; '.join(changed[:3])}{more}). "
            f"Use another --workdir, or start from its weights by --config.init_from={workdir}"
        )


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained model with what is needed to use it. params are the averaged ones where the run averages."""

    config: ConfigDict
    classes: tuple[str, ...]
    task: Classification
    step: int
    params: dict
    model_state: dict


def open_run(workdir: Path | str, checkpoint: str = "best") -> Run:
    """Opens a run folder at a checkpoint: "best" by validation (else the latest), "latest", or a step."""
    workdir = Path(workdir)
    if not workdir.is_dir():
        raise UserError(f"no run folder '{workdir}'")
    config = config_lib.read(workdir / "config.json")
    classes = _read_classes(workdir / "classes.json")
    task = build_task(config, len(classes))
    checkpoints = Checkpoints(workdir, config.best_metric, read_only=True)
    step = checkpoints.choose(checkpoint)
    state = checkpoints.restore(step, abstract_state(config, task))
    checkpoints.close()
    return Run(config, classes, task, step, state.eval_params, state.model_state)


def _read_classes(path):
    try:
        return tuple(json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read '{path}', the names of the run's classes: {error}") from None
