"""Texts found by decoding, in batches of few shapes; each search compiles once a shape."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict
from sentencepiece import SentencePieceProcessor

from attnjax.data.text import pipeline as text_pipeline
from attnjax.data.text import vocabulary as text
from attnjax.decoding import Options
from attnjax.errors import UserError
from attnjax.objectives.sequence import SequenceObjective
from attnjax.tasks.pairs import row_multiple
from attnjax.training import devices as parallel

GREEDY = {"beam_size": 1, "length_penalty": "none"}


class Candidate(NamedTuple):
    """One output: its text, score, subwords (eos last) and their log-probabilities."""

    text: str
    score: float
    subwords: tuple[str, ...]
    log_probs: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Searcher:
    """Finds outputs as `config.decoding` says. `vocabulary` is the target's, `limit` the model's, eos counted."""

    config: ConfigDict
    task: SequenceObjective
    vocabulary: SentencePieceProcessor
    limit: int

    def check(self) -> None:
        """Raises UserError for what would otherwise stop the first validation, or the test after the training."""
        self.options(self.limit)
        for name, value, least in (
            ("data.eval_tokens", self.config.data.eval_tokens, 1),
            ("decoding.extra_length", self.config.decoding.extra_length, 0 if "source" in self.task.reads else 1),
        ):
            if value < least:
                raise UserError(f"{name}={value}: it should be {least} or more")

    def options(self, max_length: int, **decoding) -> Options:
        """Returns the options of a search: those of the config, but for those given."""
        chosen = {**self.config.decoding, **decoding}
        del chosen["extra_length"]
        return Options(max_length, **chosen | {"min_length": min(chosen["min_length"], max_length)})

    def search(
        self,
        variables,
        sources: Sequence[Sequence[int]],
        image: Callable[[np.ndarray], np.ndarray] | None = None,
        **decoding,
    ) -> list[list[Candidate]]:
        """Returns the `n_best` outputs of each source, best first; sources are ids with eos last, or none at all.

        `image(indices)` returns the images (B, H, W, C) of sources, anything for -1.
        """
        extra = {**self.config.decoding, **decoding}["extra_length"]
        found = [None] * len(sources)
        for batch in text_pipeline.source_batches(
            sources,
            max_tokens=self.config.data.eval_tokens,
            max_length=self.limit,
            row_multiple=row_multiple(self.config),
        ):
            index = batch.pop("index")
            lengths = (batch["source"] != text.PAD).sum(1)
            width = batch["source"].shape[1] if "source" in self.task.reads else 0
            longest = min(width + extra, self.limit)
            batch["max_lengths"] = np.where(index < 0, 1, np.minimum(lengths + extra, longest)).astype(np.int32)
            if image:
                batch["image"] = image(index)
            hypotheses = jax.device_get(self._generator(self.options(longest, **decoding))(variables, batch))
            for row in np.flatnonzero(index >= 0):
                found[index[row]] = self._candidates(jax.tree.map(lambda x, row=row: x[row], hypotheses))
        return found

    @functools.cached_property
    def _generators(self) -> dict[Options, Callable]:
        return {}

    def _generator(self, options):
        if options not in self._generators:

            def generate(variables, batch):
                return self.task.generate(*variables, batch, options, batch["max_lengths"])

            self._generators[options] = parallel.of(self.config).per_example(generate)
        return self._generators[options]

    def _candidates(self, hypotheses):
        kept = [i for i, length in enumerate(hypotheses.lengths) if length]
        ids = [hypotheses.tokens[i][: hypotheses.lengths[i]].tolist() for i in kept]
        return [
            Candidate(
                plain,
                float(hypotheses.scores[i]),
                tuple(self.vocabulary.id_to_piece(row)),
                tuple(hypotheses.log_probs[i][: len(row)].tolist()),
            )
            for i, row, plain in zip(kept, ids, text.decode(self.vocabulary, ids), strict=True)
        ]
