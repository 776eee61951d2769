"""Image classification as a task."""

import dataclasses
import functools
import json
import math
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from attnjax import models
from attnjax.data.images import pipeline
from attnjax.data.images.augment import Augmentation
from attnjax.data.images.format import ImageFormat, read_image
from attnjax.data.images.preparation import prepare
from attnjax.data.images.sources import ImageSource, open_source
from attnjax.errors import UserError
from attnjax.files import write_atomically
from attnjax.metrics.sums import mean_over
from attnjax.nn.kernels import resolve_precision
from attnjax.objectives.classification import ClassificationObjective
from attnjax.tasks.report import TestReport
from attnjax.tasks.splits import Splits, this_shard
from attnjax.training.devices import Devices, check_batch_size
from attnjax.training.step import make_eval_step
from attnjax.weights import huggingface

CLASSES_FILE = "classes.json"


@dataclasses.dataclass(frozen=True)
class ClassificationTask:
    """Classification of images into named classes; see `attnjax.tasks.Task`. batch sizes are over all devices."""

    model_name: str
    objective: ClassificationObjective
    classes: tuple[str, ...]
    data: Splits[ImageSource]
    image_format: ImageFormat
    augmentation: Augmentation
    devices: Devices
    batch_size: int
    eval_batch_size: int
    seed: int
    workers: int  # threads that load images, 0: one per core

    unit: ClassVar[str] = "images"
    shown: ClassVar[tuple[str, ...]] = ("image",)

    @classmethod
    def for_training(cls, config: ConfigDict, devices: Devices, workdir: Path | None) -> "ClassificationTask":
        del workdir
        check_batch_size(devices, "batch_size", config.batch_size, config.accumulate)
        check_batch_size(devices, "eval_batch_size", config.eval_batch_size)
        data = _splits(config.data).for_training()
        if len(data.train.classes) == 1:
            raise UserError(f"{data.spec} has one class, {data.train.classes[0]}: a classifier needs two or more")
        return dataclasses.replace(cls.with_classes(config, devices, data.train.classes), data=data)

    @classmethod
    def from_run(cls, config: ConfigDict, devices: Devices, workdir: Path) -> "ClassificationTask":
        path = workdir / CLASSES_FILE
        try:
            return cls.with_classes(config, devices, tuple(json.loads(path.read_text())))
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read '{path}', the names of the run's classes: {error}") from None

    @classmethod
    def with_classes(cls, config: ConfigDict, devices: Devices, classes: tuple[str, ...]) -> "ClassificationTask":
        """Returns the task with no data open; UserError where the model cannot take the config's images."""
        dtype = resolve_precision(config.precision)
        model = models.build(config.model, num_classes=len(classes), dtype=dtype)
        image_format = make_image_format(config.data)
        models.check_image_size(config.model, image_format.image_size)
        return cls(
            model_name=config.model.name,
            objective=ClassificationObjective(
                model, config.label_smoothing, tuple(config.optimizer.freeze), masks=config.data.skip_corrupt
            ),
            classes=classes,
            data=_splits(config.data),
            image_format=image_format,
            augmentation=Augmentation(**config.data.augment),
            devices=devices,
            batch_size=config.batch_size,
            eval_batch_size=config.eval_batch_size,
            seed=config.seed,
            workers=config.data.workers,
        )

    def save(self, workdir: Path) -> list[Path]:
        write_atomically(workdir / CLASSES_FILE, json.dumps(self.classes) + "\n")
        return [workdir / CLASSES_FILE]

    def export(self, folder: Path, params: Any) -> str:
        """Writes the model with `params` for Hugging Face's transformers; returns the classes that read it."""
        arguments = (self.objective.model, params, self.classes, self.image_format)
        return huggingface.write_classifier(folder, self.model_name, *arguments)

    @property
    def example(self) -> dict[str, jax.ShapeDtypeStruct]:
        return {"image": jax.ShapeDtypeStruct((1, *self.image_format.shape), jnp.float32)}

    # Training

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self.data.train) * self.augmentation.repeats / self.batch_size)

    @property
    def header(self) -> list[str]:
        lines = self.data.header(lambda source: f"{len(source):,} images of {len(source.classes)} classes")
        mixed = ", mixed in pairs: training's loss and accuracy are of these" if self.augmentation.mixes else ""
        return [*lines, f"batches     {self.batch_size} images{mixed}"]

    def fingerprint(self) -> dict[str, str]:
        transforms = {"transforms": image_transforms(self.image_format, self.augmentation)}
        return self.data.fingerprint(self.seed) | transforms | {"batches": f"{self.batch_size} images"}

    def batches(self):
        return pipeline.train_iterator(
            self.data.train,
            self.image_format,
            self.augmentation,
            batch_size=self.batch_size,
            seed=self.seed,
            shard=this_shard(),
            workers=self.workers,
        )

    def prepare(self, batch):
        """Returns a batch as the objective takes it; see `preparation.prepare`."""
        return prepare(batch, self.image_format)

    def batch_shapes(self, batch) -> list[dict[str, jax.ShapeDtypeStruct]]:
        return [jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)]

    # Evaluation

    def validate(self, variables) -> dict[str, float]:
        return self._measure(self.data.validation, variables) if self.data.validation else {}

    def test(self, split: str, variables) -> TestReport:
        """Measures on a split; UserError if its classes are not the model's."""
        check_batch_size(self.devices, "eval_batch_size", self.eval_batch_size)
        source = self.data.open(split)
        if source.classes != self.classes:
            ours, theirs = _some(self.classes), _some(source.classes)
            raise UserError(f"the classes of {self.data.spec} ({theirs}) are not the model's ({ours})")
        return TestReport({"images": len(source)}, self._measure(source, variables))

    def eval_batches(self, source: ImageSource):
        """Returns an iterable over this process's batches of every example once."""
        return pipeline.eval_batches(
            source,
            self.image_format,
            batch_size=self.eval_batch_size,
            shard=this_shard(),
            workers=self.workers,
        )

    def read_image(self, path: Path):
        """Returns an image file as evaluation shows it to the model, (H, W, C) float32."""
        return read_image(path, self.image_format)

    def _measure(self, source, variables):
        return mean_over(self._eval_step, variables, self.eval_batches(source))

    @functools.cached_property
    def _eval_step(self):
        return self.devices.evaluate(make_eval_step(self.objective, self.prepare))


def make_image_format(data: ConfigDict) -> ImageFormat:
    """Returns the image format of a config's `data` group."""
    return ImageFormat(**{field.name: data[field.name] for field in dataclasses.fields(ImageFormat)})


def image_transforms(image_format: ImageFormat, augmentation: Augmentation) -> str:
    """Returns everything that is done to training images, for a fingerprint."""
    return str(dataclasses.asdict(image_format) | dataclasses.asdict(augmentation))


def _splits(data):
    options = {name: data[name] for name in ("data_dir", "channels", "skip_corrupt", "max_skipped")}
    return Splits.from_config(data, functools.partial(open_source, data.source, **options))


def _some(classes):
    return ", ".join(classes[:5]) + (", ..." if len(classes) > 5 else "")
