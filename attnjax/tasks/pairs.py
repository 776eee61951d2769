"""What translation and captioning share: batches of sentence pairs for training and evaluation, and the vocabulary."""

import dataclasses
import functools
import math
from collections.abc import Iterable
from pathlib import Path

import jax
from ml_collections import ConfigDict

from attnjax.data.fingerprint import digest
from attnjax.data.text import pipeline
from attnjax.data.text.batching import Batching, Layout, train_layout
from attnjax.data.text.corpus import encode_pairs, training_corpus
from attnjax.data.text.sources import PairSource
from attnjax.data.text.vocabulary import Sampling, Vocabulary, load_vocabulary, train_vocabulary
from attnjax.tasks.splits import this_shard
from attnjax.training.devices import Devices, rows_multiple

VOCABULARY_FOLDER = "vocabulary"


def run_vocabulary(config: ConfigDict, workdir: Path, pairs: PairSource) -> Vocabulary:
    """Returns the run folder's vocabulary, else that of the run it starts from, else one learned from `pairs`."""
    for folder in (workdir, Path(config.init_from or workdir)):
        if (folder / VOCABULARY_FOLDER).is_dir():
            return load_vocabulary(folder / VOCABULARY_FOLDER)
    return train_vocabulary(pairs.source, pairs.target, **config.data.vocabulary)


def row_multiple(devices: Devices, accumulate: int = 1) -> int:
    """Returns what the rows of a batch are a multiple of: 8, and what devices and microbatches need."""
    return math.lcm(8, rows_multiple(devices, accumulate))


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


def eval_batches(
    pairs: PairSource, vocabulary: Vocabulary, devices: Devices, max_tokens: int
) -> Iterable[pipeline.Batch]:
    """Returns this process's batches of every pair once; see `pipeline.eval_batches`."""
    return pipeline.eval_batches(
        encode_pairs(pairs, vocabulary),
        max_tokens=max_tokens,
        row_multiple=row_multiple(devices),
        shard=this_shard(),
    )


def with_perplexity(means: dict[str, float]) -> dict[str, float]:
    """Returns the metrics and the perplexity of their loss, which is a mean over tokens."""
    return means | {"perplexity": math.exp(min(means["loss"], 100))}
