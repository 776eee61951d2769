"""Encoded sentence pairs, in flat arrays so that NumPy gathers a batch in one step."""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from attnjax.data.text.sources import PairSource
from attnjax.data.text.vocabulary import BOS, EOS, Sampling, Vocabulary, encode

_CHUNK = 2**15  # sentences whose ids are Python lists at a time, which take ten times the memory of arrays
_SAMPLE = 1  # separates the random stream of subword sampling from those in `pipeline`


@dataclass(frozen=True)
class Sentences:
    """Token ids of many sentences, concatenated: sentence i is `tokens[starts[i] : starts[i + 1]]`, int32."""

    tokens: np.ndarray
    starts: np.ndarray

    @classmethod
    def of(cls, sentences: Iterable[Sequence[int]]) -> "Sentences":
        remaining, lengths, tokens = iter(sentences), [np.zeros(1, np.int64)], []
        while chunk := list(itertools.islice(remaining, _CHUNK)):
            lengths.append(np.fromiter(map(len, chunk), np.int64, count=len(chunk)))
            ids = itertools.chain.from_iterable(chunk)
            tokens.append(np.fromiter(ids, np.int32, count=lengths[-1].sum()))
        return cls(np.concatenate([*tokens, np.zeros(0, np.int32)]), np.cumsum(np.concatenate(lengths)))

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
    sources = _encoded(vocabulary.source, source.source, sampling, (*seed, 0))
    targets = _encoded(vocabulary.target, source.target, sampling, (*seed, 1))
    return Pairs(Sentences.of([*ids, EOS] for ids in sources), Sentences.of([BOS, *ids, EOS] for ids in targets))


def _encoded(model, sentences, sampling, seed) -> Iterator[list[int]]:
    if sampling:  # all together, as the draws depend on all sentences before
        yield from encode(model, sentences, sampling, seed)
        return
    for start in range(0, len(sentences), _CHUNK):
        yield from encode(model, sentences[start : start + _CHUNK])


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
