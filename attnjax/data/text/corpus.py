"""Encoded sentence pairs, in flat arrays so that NumPy gathers a batch in one step."""

import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from attnjax.data.text.sources import PairSource
from attnjax.data.text.vocabulary import BOS, EOS, Sampling, Vocabulary, encode

_SAMPLE = 1  # separates the random stream of subword sampling from those in `pipeline`


@dataclass(frozen=True)
class Sentences:
    """Token ids of many sentences, concatenated: sentence i is `tokens[starts[i] : starts[i + 1]]`, int32."""

    tokens: np.ndarray
    starts: np.ndarray

    @classmethod
    def of(cls, sentences: Iterable[Sequence[int]]) -> "Sentences":
        sentences = list(sentences)
        starts = np.concatenate([[0], np.cumsum([len(ids) for ids in sentences], dtype=np.int64)]).astype(np.int64)
        tokens = np.fromiter(itertools.chain.from_iterable(sentences), np.int32, count=starts[-1])
        return cls(tokens, starts)

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.starts)


@dataclass(frozen=True)
class Pairs:
    """Encoded sentence pairs: the source ends in eos, the target starts with bos and ends in eos."""

    source: Sentences
    target: Sentences

    def __len__(self) -> int:
        return len(self.source.starts) - 1

    @property
    def lengths(self) -> np.ndarray:
        """The positions that a model needs per pair, int64: the longer side's subwords, counting one special token."""
        return np.maximum(self.source.lengths, self.target.lengths - 1)


Corpus = Callable[[int], Pairs]  # from an epoch to its pairs: always the same, or with newly sampled subwords


def encode_pairs(
    source: PairSource, vocabulary: Vocabulary, sampling: Sampling | None = None, seed: tuple[int, ...] = ()
) -> Pairs:
    """Encodes all pairs; with `sampling`, the subwords of each side are sampled by `seed`."""
    sources = encode(vocabulary.source, source.source, sampling, (*seed, 0))
    targets = encode(vocabulary.target, source.target, sampling, (*seed, 1))
    return Pairs(Sentences.of([*ids, EOS] for ids in sources), Sentences.of([BOS, *ids, EOS] for ids in targets))


def training_corpus(source: PairSource, vocabulary: Vocabulary, sampling: Sampling, seed: int) -> Corpus:
    """Returns the pairs of each epoch: encoded once, or if `sampling` is on, with subwords sampled by (seed, epoch).

    All sentences are sampled together and in order, so that their subwords do not depend on how they are batched. The
    latest epoch is cached.
    """
    if not sampling:
        pairs = encode_pairs(source, vocabulary)
        return lambda epoch: pairs

    @functools.lru_cache(maxsize=1)
    def corpus(epoch: int) -> Pairs:
        return encode_pairs(source, vocabulary, sampling, (seed, _SAMPLE, epoch))

    return corpus
