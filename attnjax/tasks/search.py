"""Decoding of many sources in batches of few shapes; each search compiles once per shape."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from sentencepiece import SentencePieceProcessor

from attnjax.data.text import pipeline
from attnjax.data.text.vocabulary import PAD, decode
from attnjax.decoding import Options
from attnjax.errors import Diverged, UserError
from attnjax.objectives.sequence import SequenceObjective
from attnjax.training.devices import Devices, rows_multiple
from attnjax.training.memory import free_bytes

GREEDY = {"beam_size": 1, "length_penalty": "none"}


def row_multiple(devices: Devices, accumulate: int = 1) -> int:
    """Returns what the rows of a batch of text are a multiple of: 8, and what devices and microbatches need."""
    return math.lcm(8, rows_multiple(devices, accumulate))


class Candidate(NamedTuple):
    """One output: its text, score, subwords (eos last) and their log-probabilities."""

    text: str
    score: float
    subwords: tuple[str, ...]
    log_probs: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Searcher:
    """Greedy and beam search over batches.

    vocabulary: the target's. limit: the longest sequence that the model takes, eos counted. decoding: the config's
    `decoding` group. eval_tokens: source tokens per batch, padding included.
    """

    objective: SequenceObjective
    vocabulary: SentencePieceProcessor
    limit: int
    devices: Devices
    decoding: Mapping[str, Any]
    eval_tokens: int

    def check(self) -> None:
        """Raises UserError for what would otherwise stop the first validation, or the test after the training."""
        self.options(self.limit)
        for name, value, least in (
            ("data.eval_tokens", self.eval_tokens, 1),
            ("decoding.extra_length", self.decoding["extra_length"], 0 if "source" in self.objective.reads else 1),
        ):
            if value < least:
                raise UserError(f"{name}={value}: it should be {least} or more")

    def options(self, max_length: int, **decoding) -> Options:
        """Returns the options of a search: the config's, overridden by those given."""
        chosen = {**self.decoding, **decoding}
        del chosen["extra_length"]
        return Options(max_length, **chosen | {"min_length": min(chosen["min_length"], max_length)})

    def search(
        self,
        variables,
        sources: Sequence[Sequence[int]],
        image: Callable[[np.ndarray], np.ndarray] | None = None,
        **decoding,
    ) -> list[list[Candidate]]:
        """Returns the `n_best` outputs of each source, best first; sources are ids with eos last, or all empty.

        `image(indices)` returns the images (B, H, W, C) of sources, anything for -1.
        """
        extra = {**self.decoding, **decoding}["extra_length"]
        found: list[list[Candidate]] = [[] for _ in sources]
        for batch in pipeline.source_batches(
            sources, max_tokens=self.eval_tokens, max_length=self.limit, row_multiple=row_multiple(self.devices)
        ):
            index = batch.pop("index")
            lengths = (batch["source"] != PAD).sum(1)
            width = batch["source"].shape[1] if "source" in self.objective.reads else 0
            longest = min(width + extra, self.limit)
            batch["max_lengths"] = np.where(index < 0, 1, np.minimum(lengths + extra, longest)).astype(np.int32)
            if image:
                batch["image"] = image(index)
            options = self.options(longest, **decoding)
            self._check_memory(variables, batch, options)
            hypotheses = jax.device_get(self._generator(options)(variables, batch))
            for row in np.flatnonzero(index >= 0):
                found[index[row]] = self._candidates(jax.tree.map(lambda x, row=row: x[row], hypotheses))
        if not all(found):
            raise Diverged("the model's probabilities are NaN or 0 for all outputs: its weights are not usable")
        return found

    def _check_memory(self, variables, batch, options):
        """Raises UserError if a search takes more memory than there is, which would end the process without a word."""
        rows, free = len(batch["max_lengths"]), free_bytes()
        key = (options, rows, batch["source"].shape)
        if free is None or key in self._checked:
            return
        # The cache before and after its reordering; for each hypothesis logits, log-probabilities and their sums, and
        # the tokens and log-probabilities of 2K candidates, K finished and K open ones.
        cache = self.objective.cache_bytes(*variables, batch, options.max_length)
        others = 4 * rows * (3 * self.vocabulary.get_piece_size() + 8 * options.max_length)
        needed = options.beam_size * (2 * cache + others)
        if jax.default_backend() != "cpu":
            needed //= self.devices.shards
        if needed > free:
            raise UserError(
                f"a search with beam_size={options.beam_size} needs about {needed / 2**30:,.1f} GiB for {rows} rows, "
                f"and {free / 2**30:,.1f} GiB are free: choose a smaller beam, or smaller data.eval_tokens"
            )
        self._checked.add(key)

    @functools.cached_property
    def _checked(self) -> set:
        return set()

    @functools.cached_property
    def _generators(self) -> dict[Options, Callable]:
        return {}

    def _generator(self, options):
        if options not in self._generators:

            def generate(variables, batch):
                return self.objective.generate(*variables, batch, options, batch["max_lengths"])

            self._generators[options] = self.devices.per_example(generate)
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
            for i, row, plain in zip(kept, ids, decode(self.vocabulary, ids), strict=True)
        ]
