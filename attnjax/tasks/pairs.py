"""What translation and captioning share: batches of sentence pairs for training and evaluation, and the vocabulary."""

import dataclasses
import functools
import math
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

import jax
from ml_collections import ConfigDict

from attnjax.data.fingerprint import digest
from attnjax.data.text import pipeline
from attnjax.data.text.batching import Batching, Layout, train_layout
from attnjax.data.text.corpus import encode_pairs, training_corpus
from attnjax.data.text.sources import PairSource
from attnjax.data.text.vocabulary import Sampling, Vocabulary, load_vocabulary, save_vocabulary, train_vocabulary
from attnjax.metrics.sums import mean_over
from attnjax.objectives.sequence import SequenceObjective
from attnjax.tasks.search import Searcher, row_multiple
from attnjax.tasks.splits import this_shard
from attnjax.training.devices import Devices
from attnjax.training.step import make_eval_step

VOCABULARY_FOLDER = "vocabulary"


def run_vocabulary(config: ConfigDict, workdir: Path | None, pairs: PairSource) -> Vocabulary:
    """Returns the vocabulary of a resumed run, else that of the run it starts from, else one learned from `pairs`."""
    for folder in (workdir, config.init_from):
        if folder and (Path(folder) / VOCABULARY_FOLDER).is_dir():
            return load_vocabulary(Path(folder) / VOCABULARY_FOLDER)
    return train_vocabulary(pairs.source, pairs.target, **config.data.vocabulary)


@dataclasses.dataclass(frozen=True)
class TrainingPairs:
    """The training batches of sentence pairs, with the arrays that `pipeline.train_iterator` describes."""

    pairs: PairSource
    vocabulary: Vocabulary
    vocabulary_kind: str
    batching: Batching
    sampling: Sampling
    seed: int

    @classmethod
    def from_config(
        cls, config: ConfigDict, devices: Devices, vocabulary: Vocabulary, pairs: PairSource
    ) -> "TrainingPairs":
        data = config.data
        batching = Batching(**data.batching, row_multiple=row_multiple(devices, config.accumulate))
        return cls(pairs, vocabulary, data.vocabulary.kind, batching, Sampling(**data.sampling), config.seed)

    @functools.cached_property
    def _corpus(self):
        return training_corpus(self.pairs, self.vocabulary, self.sampling, self.seed)

    @functools.cached_property
    def layout(self) -> Layout:
        """The shapes and numbers of an epoch's batches."""
        return train_layout(self._corpus, self.batching, seed=self.seed)

    def fingerprint(self) -> dict[str, str]:
        """What decides how sentences become batches; see `Splits.fingerprint`."""
        models = [side.serialized_model_proto() for side in (self.vocabulary.source, self.vocabulary.target)]
        return {"vocabulary": digest(models), "batches": f"{self.batching}, {self.sampling}"}

    @property
    def header(self) -> list[str]:
        """Lines on the vocabulary and the batches."""
        layout, sizes = self.layout, f"{self.vocabulary.source.get_piece_size():,}"
        if not self.vocabulary.joint:
            sizes += f" and {self.vocabulary.target.get_piece_size():,}"
        shapes = ", ".join(f"{rows}x{width}" for rows, width, _ in layout.shapes)
        return [
            f"vocabulary  {sizes} subwords, {self.vocabulary_kind}",
            f"batches     {layout.batches:,} per epoch, {layout.padding:.1%} padding, {layout.dropped} pairs too long",
            f"            rows x tokens: {shapes}",
        ]

    def batches(self, **options):
        """Returns this process's endless iterator, which can be checkpointed; `options` are `train_iterator`'s."""
        return pipeline.train_iterator(self._corpus, self.batching, seed=self.seed, shard=this_shard(), **options)

    def shapes(self, batch: pipeline.Batch) -> list[dict[str, jax.ShapeDtypeStruct]]:
        """Returns the shapes of each kind of batch, of this process's rows, with the arrays that `batch` has."""

        def shape(name, x, rows, source, target):
            widths = {"source": source, "target": target}
            width = (widths[name.partition("_")[0]],) if name.startswith(("source", "target")) else x.shape[1:]
            return jax.ShapeDtypeStruct((rows // jax.process_count(), *width), x.dtype)

        return [{name: shape(name, x, *sizes) for name, x in batch.items()} for sizes in self.layout.shapes]


class TextTask:
    """What translation and captioning, whose outputs are text, have in common; see `attnjax.tasks.Task`."""

    objective: SequenceObjective
    vocabulary: Vocabulary
    searcher: Searcher
    devices: Devices
    training: TrainingPairs | None  # while training

    unit: ClassVar[str] = "tokens"

    def save(self, workdir: Path) -> list[Path]:
        return save_vocabulary(self.vocabulary, workdir / VOCABULARY_FOLDER)

    @property
    def limit(self) -> int:
        """The most subwords that the model takes, eos counted."""
        return self.searcher.limit

    @property
    def pairs(self) -> TrainingPairs:
        """The training batches; only of a task that was opened for training."""
        assert self.training is not None
        return self.training

    @property
    def steps_per_epoch(self) -> int:
        return self.pairs.layout.batches

    def prepare(self, batch):
        """Returns a batch as the objective takes it."""
        return batch

    def batch_shapes(self, batch: pipeline.Batch) -> list[dict[str, jax.ShapeDtypeStruct]]:
        return self.pairs.shapes(batch)

    def eval_batches(self, pairs: PairSource) -> Iterable[pipeline.Batch]:
        """Returns this process's batches of every pair once; see `pipeline.eval_batches`."""
        encoded, rows = encode_pairs(pairs, self.vocabulary), row_multiple(self.devices)
        return pipeline.eval_batches(
            encoded, max_tokens=self.searcher.eval_tokens, row_multiple=rows, shard=this_shard()
        )

    def measure(self, variables, batches: Iterable[pipeline.Batch]) -> dict[str, float]:
        """Returns loss, accuracy and perplexity by teacher forcing."""
        means = mean_over(self._eval_step, variables, batches)
        return means | {"perplexity": math.exp(min(means["loss"], 100))}

    @functools.cached_property
    def _eval_step(self):
        return self.devices.evaluate(make_eval_step(self.objective, self.prepare))
