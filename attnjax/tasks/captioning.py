"""Text from images as a task: captions, and translation of sentences that describe an image."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from attnjax import models
from attnjax.data.captions import CaptionOptions, CaptionSource, open_captions, select, shuffled, training_images
from attnjax.data.images.augment import Augmentation
from attnjax.data.images.format import ImageFormat, read_image
from attnjax.data.images.pipeline import eval_batch
from attnjax.data.images.preparation import prepare
from attnjax.data.text.vocabulary import EOS, Vocabulary, encode, load_vocabulary
from attnjax.errors import UserError
from attnjax.metrics import bleu as metrics
from attnjax.metrics.cider import cider, words
from attnjax.nn.kernels import resolve_precision
from attnjax.objectives.sequence import SequenceObjective
from attnjax.tasks.classification import image_transforms, make_image_format
from attnjax.tasks.pairs import VOCABULARY_FOLDER, TextTask, TrainingPairs, run_vocabulary
from attnjax.tasks.report import TestReport
from attnjax.tasks.search import GREEDY, Candidate, Searcher
from attnjax.tasks.splits import Splits
from attnjax.tasks.translation import vocabulary_sizes
from attnjax.training.devices import Devices

PREFETCH = 4  # batches, as images are large


@dataclasses.dataclass(frozen=True)
class CaptioningTask(TextTask):
    """Images with texts; see `attnjax.tasks.Task`. training: while training.

    A captioner reads the image, and the source sentence if the config's data has one; a transformer reads the sentence.
    """

    model_name: str
    objective: SequenceObjective
    vocabulary: Vocabulary
    languages: tuple[str, str]
    data: Splits[CaptionSource]
    image_format: ImageFormat
    augmentation: Augmentation
    searcher: Searcher
    bleu: Mapping[str, Any]
    shuffle_images: bool
    workers: int  # threads that load images, 0: one per core
    devices: Devices
    training: TrainingPairs | None = None

    @classmethod
    def for_training(cls, config: ConfigDict, devices: Devices, workdir: Path | None) -> "CaptioningTask":
        data = _splits(config.data).for_training()
        pairs, _ = data.train.pairs()
        vocabulary = run_vocabulary(config, workdir, pairs)
        training = TrainingPairs.from_config(config, devices, vocabulary, pairs)
        task = dataclasses.replace(cls.with_vocabulary(config, devices, vocabulary), data=data, training=training)
        task.searcher.check()
        return task

    @classmethod
    def from_run(cls, config: ConfigDict, devices: Devices, workdir: Path) -> "CaptioningTask":
        return cls.with_vocabulary(config, devices, load_vocabulary(workdir / VOCABULARY_FOLDER))

    @classmethod
    def with_vocabulary(cls, config: ConfigDict, devices: Devices, vocabulary: Vocabulary) -> "CaptioningTask":
        """Returns the task with no data open; UserError where the model cannot take the config's batches."""
        if config.data.batching.method == "pack":
            raise UserError("data.batching.method=pack is for translation: each row here has its own image")
        dtype, sizes = resolve_precision(config.precision), vocabulary_sizes(vocabulary)
        sees: tuple[str, ...] = ("image",) if config.model.get("name") == "captioner" else ()
        build = models.build_captioner if sees else models.build
        model: Any = build(config.model, dtype=dtype, **sizes)
        reads = (*(("source",) if config.data.image_lines else ()), *sees)
        if not reads:
            raise UserError(f"a {config.model.name} cannot see images: captions need a model of captioner")
        if model.max_length < config.data.batching.max_length:
            length, limit = config.data.batching.max_length, model.max_length
            raise UserError(f"data.batching.max_length={length} is more than the model's max_length={limit}")
        frozen = tuple(config.optimizer.freeze)
        objective = SequenceObjective(model, config.label_smoothing, config.smoothing_form, reads, frozen)
        return cls(
            model_name=config.model.name,
            objective=objective,
            vocabulary=vocabulary,
            languages=tuple(config.data.languages),
            data=_splits(config.data),
            image_format=make_image_format(config.data),
            augmentation=Augmentation(**config.data.augment),
            searcher=Searcher(
                objective, vocabulary.target, model.max_length, devices, dict(config.decoding), config.data.eval_tokens
            ),
            bleu=dict(config.bleu),
            shuffle_images=config.data.shuffle_images,
            workers=config.data.workers,
            devices=devices,
        )

    def export(self, folder: Path, params: Any) -> str:
        raise UserError(f"Hugging Face's formats are not written for captioning by {self.model_name}")

    @property
    def reads(self) -> tuple[str, ...]:
        """What the model reads of a batch beside the target: "source", "image" or both."""
        return self.objective.reads

    @property
    def shown(self) -> tuple[str, ...]:
        return (*self.reads, "target")

    @property
    def example(self) -> dict[str, jax.ShapeDtypeStruct]:
        shapes = {name: jax.ShapeDtypeStruct((1, 4), jnp.int32) for name in ("source", "target")}
        return shapes | {"image": jax.ShapeDtypeStruct((1, *self.image_format.shape), jnp.float32)}

    # Training

    @property
    def header(self) -> list[str]:
        def describe(source):
            return f"{len(source):,} images with {sum(map(len, source.references)):,} texts"

        reads = f"reads       {' and '.join(self.reads)}, {'-'.join(self.languages)}"
        return [*self.data.header(describe), reads, *self.pairs.header]

    def fingerprint(self) -> dict[str, str]:
        transforms = {"transforms": image_transforms(self.image_format, self.augmentation)}
        return self.data.fingerprint(self.pairs.seed) | transforms | self.pairs.fingerprint()

    def batches(self):
        attach = None
        if "image" in self.reads:
            source = self.data.train
            transforms = (self.image_format, self.augmentation)
            attach = training_images(source.images, source.pairs()[1], *transforms, workers=self.workers)
        return self.pairs.batches(attach=attach, prefetch=PREFETCH)

    def prepare(self, batch):
        """Returns a batch as the objective takes it; see `preparation.prepare`."""
        return prepare(batch, self.image_format) if "image" in batch else batch

    # Evaluation

    def validate(self, variables) -> dict[str, float]:
        """Loss and accuracy by teacher forcing; BLEU and, for captions, CIDEr-D of texts found by greedy search."""
        source = self.data.validation
        if source is None:
            return {}
        outputs, source = self._describe(variables, source, **GREEDY)
        scores = {name: value for name, (value, _) in self._score(outputs, source).items()}
        return self._measure(source, variables) | scores

    def test(self, split: str, variables) -> TestReport:
        """Describes the images of a split as `config.decoding` says, and measures the texts."""
        source = self.data.open(split)
        if self.shuffle_images:
            source = shuffled(source)
        outputs, source = self._describe(variables, source)
        scores = self._score(outputs, source)
        lines = [{"image": source.images.name(i), "text": line} for i, line in enumerate(outputs)]
        return TestReport(
            examples={"images": len(source), "texts": sum(map(len, source.references))},
            metrics={name: value for name, (value, _) in scores.items()} | self._measure(source, variables),
            notes={name: signature for name, (_, signature) in scores.items() if signature},
            files={"jsonl": "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)},
        )

    def _score(self, outputs: Sequence[str], source: CaptionSource) -> dict[str, tuple[float, str]]:
        """Returns name -> (value, how it was computed), by the words of captions or the whole text of translations."""
        if source.sources is not None:
            references = [texts[0] for texts in source.references]
            case = {"lowercase": self.bleu["lowercase"]}
            metrics.check_tokeniser(self.bleu["tokenize"], references)
            return {
                "bleu": metrics.bleu(outputs, references, tokenize=self.bleu["tokenize"], **case),
                "chrf": metrics.chrf(outputs, references, **case),
            }
        metrics.check_words([text for texts in source.references for text in texts])
        captions = [words(line) for line in outputs]
        truths = [[words(line) for line in texts] for texts in source.references]
        bleus = {f"bleu{n}" if n < 4 else "bleu": metrics.words_bleu(captions, truths, n) for n in (1, 2, 3, 4)}
        return bleus | {"cider": (cider(captions, truths), "CIDEr-D, sigma 6, n-grams of the split's own references")}

    def _measure(self, source, variables):
        pairs, example = source.pairs()
        batches = self.eval_batches(pairs)
        if "image" in self.reads:
            batches = (self._with_images(batch, source.images, example) for batch in batches)
        return self.measure(variables, batches)

    def _with_images(self, batch, images, example):
        index = np.where(batch["index"] < 0, -1, example[batch["index"]])
        shown = eval_batch(images, index, self.image_format, self.workers)
        return batch | {name: shown[name] for name in ("image", "mask")}

    # Generation

    def describe(
        self,
        variables,
        count: int,
        image: Callable[[np.ndarray], np.ndarray],
        sentences: Sequence[str] | None = None,
        **decoding,
    ) -> list[list[Candidate]]:
        """Returns the `n_best` texts of each of `count` examples, best first; `decoding` overrides `config.decoding`.

        `image(indices)` returns the images (B, H, W, C) float32 of examples, anything for -1; `sentences` are sources.
        """
        sources = self.encode(sentences or ()) if "source" in self.reads else [[] for _ in range(count)]
        return self.searcher.search(variables, sources, image if "image" in self.reads else None, **decoding)

    def encode(self, sentences: Sequence[str]) -> list[list[int]]:
        """Returns the source subwords of each sentence, up to the model's limit, eos last."""
        return [[*ids[: self.limit - 1], EOS] for ids in encode(self.vocabulary.source, sentences)]

    def read_image(self, path: Path) -> np.ndarray:
        """Returns an image file as evaluation shows it to the model, (H, W, C) float32."""
        return read_image(path, self.image_format)

    def _describe(self, variables, source, **decoding) -> tuple[list[str], CaptionSource]:
        """Returns the best text of each example, and these examples: those whose image can be read."""
        readable = np.ones(len(source), bool)

        def image(indices):
            shown = eval_batch(source.images, indices, self.image_format, self.workers)
            readable[indices[indices >= 0]] = shown["mask"][indices >= 0]
            return self.image_format.normalise(shown["image"])

        found = self.describe(variables, len(source), image, source.sources, **decoding)
        if not readable.any():
            raise UserError("nothing to measure: not one image could be read")
        chosen = np.flatnonzero(readable)
        return [found[i][0].text for i in chosen], select(source, chosen)


def _splits(data):
    def open_split(split):
        options = {field.name: data[field.name] for field in dataclasses.fields(CaptionOptions)}
        return open_captions(data.source, split, CaptionOptions(**options | {"languages": tuple(data.languages)}))

    return Splits.from_config(data, open_split)
