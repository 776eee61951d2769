"""What a config's `task` stands for: its data, the task with its model, validation, its part of a run folder.

A workload is a frozen dataclass with

    config               the experiment's
    task                 pure functions of a batch: init, loss, evaluate, ...
    shown                names of what the model reads of a batch
    unit                 what the weight of its loss counts: "images", "tokens"
    best_metrics         names of the validation's metrics that may choose the best checkpoint
    example              name -> ShapeDtypeStruct, a batch to initialise the model with
    save(workdir)        writes what `from_run` needs beside config.json
    test(split, variables)  returns a Report; variables are (params, model state)

and two ways to make one: `from_run(config, workdir)` reads a run folder, `for_training(config, workdir)` opens the data
too, and has then also

    steps_per_epoch, header   the header is lines on the data
    batches()                 the endless iterator of training batches, which can be checkpointed
    batch_shapes(batch)       the shapes of each kind of training batch, of which `batch` is one
    validate(variables)       metrics on the validation split, {} where there is none
    fingerprint()             field -> value of what decides which batches are read: a resumed run must find the same

A new kind of task is one module here and one row below.
"""

from pathlib import Path

from ml_collections import ConfigDict

from attnjax import config as config_lib
from attnjax.errors import UserError, nearest
from attnjax.tasks.captioning import CaptioningWorkload
from attnjax.tasks.classification import ClassificationWorkload
from attnjax.tasks.report import Report
from attnjax.tasks.translation import TranslationWorkload

WORKLOADS = {
    "classification": ClassificationWorkload,
    "translation": TranslationWorkload,
    "captioning": CaptioningWorkload,
}

__all__ = ["WORKLOADS", "Report", "for_training", "from_run"]


def for_training(config: ConfigDict, workdir: Path):
    """Returns the workload of a config with its data open; UserError where data or model are not to be had."""
    return _kind(config).for_training(config, workdir)


def from_run(config: ConfigDict, workdir: Path):
    """Returns the workload of a run folder; it needs no data."""
    return _kind(config).from_run(config, workdir)


def _kind(config):
    if config.task not in WORKLOADS:
        raise UserError(f"unknown task '{config.task}', {nearest(config.task, WORKLOADS)}")
    kind = WORKLOADS[config.task]
    if missing := [name for name in config_lib.DEFAULTS[config.task]().data if name not in config.data]:
        raise UserError(f"task={config.task} needs a config of this task: there is no data.{missing[0]}")
    if config.best_metric not in kind.best_metrics:
        raise UserError(f"unknown best_metric '{config.best_metric}', {nearest(config.best_metric, kind.best_metrics)}")
    return kind
