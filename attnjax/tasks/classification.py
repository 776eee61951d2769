"""Image classification as a workload."""

import dataclasses
import functools
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from attnjax import data, models
from attnjax.data.images.sources import ImageSource
from attnjax.errors import UserError
from attnjax.files import write_atomically
from attnjax.objectives.classification import Classification
from attnjax.runs.log import mean_over
from attnjax.tasks.report import Report
from attnjax.training import devices as parallel
from attnjax.training.step import make_eval_step

CLASSES_FILE = "classes.json"


@dataclasses.dataclass(frozen=True)
class ClassificationWorkload:
    """Images of named classes; `sources` are the open splits, "train" and perhaps "validation", while training."""

    config: ConfigDict
    classes: tuple[str, ...]
    sources: dict[str, ImageSource] = dataclasses.field(default_factory=dict)

    unit = "images"
    shown = ("image",)
    best_metrics = ("accuracy", "loss")

    @classmethod
    def for_training(cls, config: ConfigDict, workdir: Path) -> "ClassificationWorkload":
        del workdir
        devices = parallel.of(config)
        parallel.check_batch_size(devices, "batch_size", config.batch_size, config.accumulate)
        parallel.check_batch_size(devices, "eval_batch_size", config.eval_batch_size)
        sources = {"train": data.open_split(config, config.data.train)}
        if config.data.validation:
            sources["validation"] = data.open_split(config, config.data.validation)
        return cls(config, sources["train"].classes, sources)

    @classmethod
    def from_run(cls, config: ConfigDict, workdir: Path) -> "ClassificationWorkload":
        path = workdir / CLASSES_FILE
        try:
            return cls(config, tuple(json.loads(path.read_text())))
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read '{path}', the names of the run's classes: {error}") from None

    def save(self, workdir: Path) -> None:
        write_atomically(workdir / CLASSES_FILE, json.dumps(self.classes) + "\n")

    @functools.cached_property
    def task(self) -> Classification:
        """The task with its model; UserError where the model cannot take the config's images."""
        model = models.build(self.config.model, num_classes=len(self.classes))
        models.check_image_size(self.config.model, tuple(self.config.data.image_size))
        return Classification(model, self.config.label_smoothing)

    @property
    def example(self) -> dict[str, jax.ShapeDtypeStruct]:
        shape = (1, *self.config.data.image_size, self.config.data.channels)
        return {"image": jax.ShapeDtypeStruct(shape, jnp.float32)}

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self.sources["train"]) * self.config.data.augment.repeats / self.config.batch_size)

    @property
    def header(self) -> list[str]:
        lines = [
            f"{split:<11} {len(source):,} images of {len(source.classes)} classes, {self.config.data.source}"
            for split, source in self.sources.items()
        ]
        return [*lines, f"batches     {self.config.batch_size} images"]

    def batches(self):
        return data.train_iterator(self.config, self.sources["train"])

    def batch_shapes(self, batch) -> list[dict[str, jax.ShapeDtypeStruct]]:
        return [jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)]

    def fingerprint(self) -> dict[str, str]:
        return data.fingerprint(self.config, self.sources) | {"batches": f"{self.config.batch_size} images"}

    def validate(self, variables) -> dict[str, float]:
        source = self.sources.get("validation")
        return self._measure(source, variables) if source else {}

    def test(self, split: str, variables) -> Report:
        """Measures on a split of the config's source; UserError if its classes are not the model's."""
        parallel.check_batch_size(parallel.of(self.config), "eval_batch_size", self.config.eval_batch_size)
        source = data.open_split(self.config, split)
        if source.classes != self.classes:
            ours, theirs = _some(self.classes), _some(source.classes)
            raise UserError(f"the classes of {self.config.data.source} ({theirs}) are not the model's ({ours})")
        return Report({"images": len(source)}, self._measure(source, variables))

    def _measure(self, source, variables):
        return mean_over(self._eval_step, variables, data.eval_batches(self.config, source))

    @functools.cached_property
    def _eval_step(self):
        return parallel.of(self.config).evaluate(make_eval_step(self.task))


def _some(classes):
    return ", ".join(classes[:5]) + (", ..." if len(classes) > 5 else "")
