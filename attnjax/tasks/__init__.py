"""What a config's `task` names: `for_training` opens one with its data, `from_run` one of a run folder.

A new kind of task is one module here with a class that follows `Task` and has these two constructors, one row of
TASKS, and its fields in `attnjax.config.schema`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import jax
from ml_collections import ConfigDict

from attnjax.tasks.captioning import CaptioningTask
from attnjax.tasks.classification import ClassificationTask
from attnjax.tasks.report import TestReport
from attnjax.tasks.splits import Splits
from attnjax.tasks.translation import TranslationTask
from attnjax.training.devices import Devices

Variables = tuple[Any, Any]  # parameters and model state
Shapes = dict[str, jax.ShapeDtypeStruct]


class Task(Protocol):
    """The data, model, objective and validation of an experiment, and its own files in a run folder.

    unit: what the weight of the loss counts, "images" or "tokens". shown: the arrays of a batch that the model reads.
    example: the shapes of a batch to initialize the model with.
    """

    unit: ClassVar[str]

    @property
    def objective(self) -> Any: ...

    @property
    def data(self) -> Splits: ...

    @property
    def devices(self) -> Devices: ...

    @property
    def shown(self) -> tuple[str, ...]: ...

    @property
    def example(self) -> Shapes: ...

    def save(self, workdir: Path) -> list[Path]:
        """Writes what `from_run` needs beside config.json, and returns those files."""

    def export(self, folder: Path, params: Any) -> str:
        """Writes the model for Hugging Face's transformers; returns the classes that read it."""

    @property
    def steps_per_epoch(self) -> int: ...

    @property
    def header(self) -> Sequence[str]:
        """Lines on the data, for the log."""

    def fingerprint(self) -> dict[str, str]:
        """Field -> value of what decides which batches are read: a resumed run must find the same."""

    def batches(self) -> Any:
        """The endless iterator over this process's training batches, which can be checkpointed."""

    def prepare(self, batch) -> dict:
        """The part of a batch's preprocessing that is compiled with the training step."""

    def batch_shapes(self, batch) -> list[Shapes]:
        """The shapes of each kind of training batch, of which `batch` is one."""

    def validate(self, variables: Variables) -> dict[str, float]:
        """Metrics on the validation split, {} where there is none."""

    def test(self, split: str, variables: Variables) -> TestReport:
        """Metrics on any split."""


TASKS: dict[str, type[ClassificationTask] | type[TranslationTask] | type[CaptioningTask]] = {
    "classification": ClassificationTask,
    "translation": TranslationTask,
    "captioning": CaptioningTask,
}


def for_training(config: ConfigDict, devices: Devices, workdir: Path | None) -> Task:
    """Returns the task of a config with its data open; UserError where data or model are missing or do not fit.

    workdir: the run folder of a training that is resumed; None for a new one.
    """
    return TASKS[config.task].for_training(config, devices, workdir)


def from_run(config: ConfigDict, devices: Devices, workdir: Path) -> Task:
    """Returns the task of a run folder; needs no data."""
    return TASKS[config.task].from_run(config, devices, workdir)
