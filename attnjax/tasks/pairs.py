"""What translation and captioning share: batches of sentence pairs to learn from and to measure on, the vocabulary."""

import dataclasses
import functools
import math
from collections.abc import Iterable
from pathlib import Path

import jax
from ml_collections import ConfigDict

from attnjax.data.fingerprint import digest
from attnjax.data.shard import Shard
from attnjax.data.text import batching, corpus
from attnjax.data.text import pipeline as text_pipeline
from attnjax.data.text import vocabulary as text
from attnjax.data.text.sources import PairSource
from attnjax.training import devices as parallel

VOCABULARY_FOLDER = "vocabulary"


def run_vocabulary(config: ConfigDict, workdir: Path, pairs: PairSource) -> text.Vocabulary:
    """Returns the run folder's vocabulary, else that of the run it starts from, else one learnt from `pairs`."""
    for folder in (workdir, Path(config.init_from or workdir)):
        if (folder / VOCABULARY_FOLDER).is_dir():
            return text.load_vocabulary(folder / VOCABULARY_FOLDER)
    return text.train_vocabulary(pairs.source, pairs.target, **config.data.vocabulary)


def row_multiple(config: ConfigDict, parts: int = 1) -> int:
    """Returns what the rows of a batch, which is taken in so many parts, are a multiple of."""
    return math.lcm(8, parallel.rows_multiple(parallel.of(config), parts))


@dataclasses.dataclass(frozen=True)
class TrainingPairs:
    """The batches of a training split, as `config.data` says."""

    config: ConfigDict
    vocabulary: text.Vocabulary
    pairs: PairSource

    @functools.cached_property
    def _batching(self):
        rows = row_multiple(self.config, self.config.accumulate)
        return batching.Batching(**self.config.data.batching, row_multiple=rows)

    @functools.cached_property
    def _corpus(self):
        sampling = text.Sampling(**self.config.data.sampling)
        return corpus.training_corpus(self.pairs, self.vocabulary, sampling, self.config.seed)

    @functools.cached_property
    def layout(self) -> batching.Layout:
        """An epoch in numbers."""
        return batching.train_layout(self._corpus, self._batching, seed=self.config.seed)

    def fingerprint(self) -> dict[str, str]:
        """What decides how sentences become batches; see `data.fingerprint`."""
        models = [side.serialized_model_proto() for side in (self.vocabulary.source, self.vocabulary.target)]
        sampling = dict(self.config.data.sampling)
        return {"vocabulary": digest(models), "batches": f"{self._batching}, sampling {sampling}"}

    @property
    def header(self) -> list[str]:
        """Lines on the vocabulary and the batches."""
        layout, sizes = self.layout, f"{self.vocabulary.source.get_piece_size():,}"
        if not self.vocabulary.joint:
            sizes += f" and {self.vocabulary.target.get_piece_size():,}"
        shapes = ", ".join(f"{rows}x{width}" for rows, width, _ in layout.shapes)
        return [
            f"vocabulary  {sizes} subwords, {self.config.data.vocabulary.kind}",
            f"batches     {layout.batches:,} an epoch, {layout.padding:.1%} padding, {layout.dropped} pairs too long",
            f"            rows x tokens: {shapes}",
        ]

    def batches(self, **options):
        """Returns this process's endless iterator, which can be checkpointed; see `text_pipeline.train_iterator`."""
        return text_pipeline.train_iterator(
            self._corpus, self._batching, seed=self.config.seed, shard=_shard(), **options
        )

    def shapes(self, batch: text_pipeline.Batch) -> list[dict[str, jax.ShapeDtypeStruct]]:
        """Returns the shapes of each kind of batch, of this process's rows, with the arrays that `batch` has."""

        def shape(name, x, rows, source, target):
            widths = {"source": source, "target": target}
            width = (widths[name.partition("_")[0]],) if name.startswith(("source", "target")) else x.shape[1:]
            return jax.ShapeDtypeStruct((rows // jax.process_count(), *width), x.dtype)

        return [{name: shape(name, x, *sizes) for name, x in batch.items()} for sizes in self.layout.shapes]


def eval_batches(config: ConfigDict, vocabulary: text.Vocabulary, pairs: PairSource) -> Iterable[text_pipeline.Batch]:
    """Returns this process's batches of every pair once; see `text_pipeline.eval_batches`."""
    return text_pipeline.eval_batches(
        corpus.encode_pairs(pairs, vocabulary),
        max_tokens=config.data.eval_tokens,
        row_multiple=row_multiple(config),
        shard=_shard(),
    )


def _shard():
    return Shard(jax.process_index(), jax.process_count())


def with_perplexity(means: dict[str, float]) -> dict[str, float]:
    """Returns the metrics and the perplexity of their loss, which is a mean over tokens."""
    return means | {"perplexity": math.exp(min(means["loss"], 100))}
