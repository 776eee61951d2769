"""Texts of images as a workload: captions, and translation of sentences that describe an image."""

import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from attnjax import data, models
from attnjax.data.captions import CaptionSource, shuffled
from attnjax.data.text import vocabulary as text
from attnjax.errors import UserError
from attnjax.metrics import bleu as text_metrics
from attnjax.metrics.cider import cider, words
from attnjax.metrics.sums import mean_over
from attnjax.objectives.sequence import SequenceObjective
from attnjax.tasks.pairs import VOCABULARY_FOLDER, TrainingPairs, eval_batches, run_vocabulary, with_perplexity
from attnjax.tasks.report import Report
from attnjax.tasks.search import GREEDY, Candidate, Searcher
from attnjax.training import devices as parallel
from attnjax.training.step import make_eval_step

PREFETCH = 4  # batches, as images are large


@dataclasses.dataclass(frozen=True)
class CaptioningWorkload:
    """Images with texts; `sources` are the open splits, "train" and perhaps "validation", while training.

    A captioner reads the image, and the source sentence where the config's data has them; a transformer the sentence.
    """

    config: ConfigDict
    vocabulary: text.Vocabulary
    sources: dict[str, CaptionSource] = dataclasses.field(default_factory=dict)

    unit = "tokens"
    best_metrics = ("cider", "bleu", "accuracy", "loss")

    @classmethod
    def for_training(cls, config: ConfigDict, workdir: Path) -> "CaptioningWorkload":
        sources = {"train": data.open_captions(config, config.data.train)}
        if config.data.validation:
            sources["validation"] = data.open_captions(config, config.data.validation)
        workload = cls(config, run_vocabulary(config, workdir, sources["train"].pairs()[0]), sources)
        workload._searcher.check()
        return workload

    @classmethod
    def from_run(cls, config: ConfigDict, workdir: Path) -> "CaptioningWorkload":
        return cls(config, text.load_vocabulary(workdir / VOCABULARY_FOLDER))

    def save(self, workdir: Path) -> None:
        text.save_vocabulary(self.vocabulary, workdir / VOCABULARY_FOLDER)

    @property
    def reads(self) -> tuple[str, ...]:
        """What the model reads of a batch beside the target."""
        sees = ("image",) if self.config.model.get("name") == "captioner" else ()
        return (*(("source",) if self.config.data.image_lines else ()), *sees)

    @functools.cached_property
    def task(self) -> SequenceObjective:
        """The task with its model; UserError where the model cannot take the config's batches."""
        config, model = self.config, self.config.model
        if config.data.batching.method == "pack":
            raise UserError("data.batching.method=pack is for translation: each row here has its own image")
        if not self.reads:
            raise UserError(f"a {model.get('name')} cannot see images: captions need a model of captioner")
        names = ("source_vocabulary", "target_vocabulary")
        both = (self.vocabulary.source, self.vocabulary.target)
        sizes = {name: side.get_piece_size() for name, side in zip(names, both, strict=True)}
        if "image" in self.reads:
            frozen = "encoder" in config.optimizer.freeze
            built = models.build_captioner(model, freeze_encoder=frozen, **sizes)
        else:
            built = models.build(model, **sizes)
        if built.max_length < config.data.batching.max_length:
            length, limit = config.data.batching.max_length, built.max_length
            raise UserError(f"data.batching.max_length={length} is more than the model's max_length={limit}")
        return SequenceObjective(built, config.label_smoothing, config.smoothing_form, self.reads)

    @property
    def example(self) -> dict[str, jax.ShapeDtypeStruct]:
        image = (1, *self.config.data.image_size, self.config.data.channels)
        shapes = {name: jax.ShapeDtypeStruct((1, 4), jnp.int32) for name in ("source", "target")}
        return shapes | {"image": jax.ShapeDtypeStruct(image, jnp.float32)}

    @property
    def limit(self) -> int:
        """The most subwords that the model takes, eos counted."""
        return self.task.model.max_length

    # Training

    @functools.cached_property
    def _training(self):
        return TrainingPairs(self.config, self.vocabulary, self.sources["train"].pairs()[0])

    @property
    def steps_per_epoch(self) -> int:
        return self._training.layout.batches

    @property
    def header(self) -> list[str]:
        data = self.config.data
        lines = [
            f"{split:<11} {len(source):,} images with {sum(map(len, source.references)):,} texts, {data.source}"
            for split, source in self.sources.items()
        ]
        return [*lines, f"reads       {' and '.join(self.reads)}, {'-'.join(data.languages)}", *self._training.header]

    def fingerprint(self) -> dict[str, str]:
        return data.fingerprint(self.config, self.sources) | self._training.fingerprint()

    def batches(self):
        source = self.sources["train"]
        attach = data.training_images(self.config, source.images, source.pairs()[1]) if "image" in self.reads else None
        return self._training.batches(attach=attach, prefetch=PREFETCH)

    @property
    def shown(self) -> tuple[str, ...]:
        return (*self.reads, "target")

    def batch_shapes(self, batch) -> list[dict[str, jax.ShapeDtypeStruct]]:
        return self._training.shapes(batch)

    # Measuring

    def validate(self, variables) -> dict[str, float]:
        """Loss and accuracy by teacher forcing; BLEU and, of captions, CIDEr-D of texts found by greedy search."""
        source = self.sources.get("validation")
        if source is None:
            return {}
        outputs = self._describe(variables, source, **GREEDY)
        return self._measure(source, variables) | {
            name: value for name, (value, _) in self._score(outputs, source).items()
        }

    def test(self, split: str, variables) -> Report:
        """Describes the images of a split as `config.decoding` says, and measures the texts."""
        source = data.open_captions(self.config, split)
        if self.config.data.shuffle_images:
            source = shuffled(source)
        outputs = self._describe(variables, source)
        scores = self._score(outputs, source)
        lines = [{"image": source.images.name(i), "text": line} for i, line in enumerate(outputs)]
        return Report(
            examples={"images": len(source), "texts": sum(map(len, source.references))},
            metrics={name: value for name, (value, _) in scores.items()} | self._measure(source, variables),
            notes={name: signature for name, (_, signature) in scores.items() if signature},
            files={"jsonl": "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)},
        )

    def _score(self, outputs: Sequence[str], source: CaptionSource) -> dict[str, tuple[float, str]]:
        """Returns name -> (value, how it was computed): a caption's words, a translation's whole text, are compared."""
        if self.config.data.image_lines:
            references, options = [texts[0] for texts in source.references], self.config.bleu
            options = {"tokenize": options.tokenize, "lowercase": options.lowercase}
            return {
                "bleu": text_metrics.bleu(outputs, references, **options),
                "chrf": text_metrics.chrf(outputs, references),
            }
        outputs = [words(line) for line in outputs]
        references = [[words(line) for line in texts] for texts in source.references]
        bleus = {f"bleu{n}" if n < 4 else "bleu": text_metrics.words_bleu(outputs, references, n) for n in (1, 2, 3, 4)}
        return bleus | {
            "cider": (cider(outputs, references), "CIDEr-D, sigma 6, n-grams of the split's own references")
        }

    def _measure(self, source, variables):
        pairs, example = source.pairs()
        batches = eval_batches(self.config, self.vocabulary, pairs)
        if "image" in self.reads:
            batches = (self._with_images(batch, source.images, example) for batch in batches)
        return with_perplexity(mean_over(self._eval_step, variables, batches))

    def _with_images(self, batch, images, example):
        index = np.where(batch["index"] < 0, -1, example[batch["index"]])
        return batch | {"image": data.eval_images(self.config, images, index)}

    @functools.cached_property
    def _eval_step(self):
        return parallel.of(self.config).evaluate(make_eval_step(self.task))

    # Describing

    def describe(
        self,
        variables,
        count: int,
        image: Callable[[np.ndarray], np.ndarray],
        sentences: Sequence[str] | None = None,
        **decoding,
    ) -> list[list[Candidate]]:
        """Returns the `n_best` texts of each of `count` examples, best first; `decoding` goes before `config.decoding`.

        `image(indices)` returns the images (B, H, W, C) float32 of examples, anything for -1; `sentences` are sources.
        """
        sources = self.encode(sentences) if "source" in self.reads else [[] for _ in range(count)]
        return self._searcher.search(variables, sources, image if "image" in self.reads else None, **decoding)

    def encode(self, sentences: Sequence[str]) -> list[list[int]]:
        """Returns the source subwords of each sentence, up to the model's limit, eos last."""
        return [[*ids[: self.limit - 1], text.EOS] for ids in text.encode(self.vocabulary.source, sentences)]

    def _describe(self, variables, source, **decoding):
        """Returns the best text of each example."""
        image = functools.partial(data.eval_images, self.config, source.images)
        found = self.describe(variables, len(source), image, source.sources, **decoding)
        return [best[0].text for best in found]

    @functools.cached_property
    def _searcher(self):
        return Searcher(self.config, self.task, self.vocabulary.target, self.limit)
