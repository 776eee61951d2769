"""Translation accuracy by source length."""

import operator
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from attnjax.data.text import vocabulary as text
from attnjax.runs.folder import Run


class Bucket(NamedTuple):
    """Pairs with sources of `shortest` to `longest` subwords, not counting eos.

    exact_match: the share of translations equal to their reference. accuracy: the share of positions at which both have
    the same subword, among the positions that either has; missing and extra subwords count as wrong.
    """

    shortest: int
    longest: int
    pairs: int
    exact_match: float
    accuracy: float


def measure(run: Run, width: int = 5) -> list[Bucket]:
    """Translates the run's test split with the config's decoding options, and returns `by_length`.

    UserError if the run is not of translation, or a sentence exceeds the model's limit.
    """
    run.expect("translation")
    task, vocabulary = run.task, run.task.vocabulary
    pairs = task.open_split(run.config.data.test)
    translations = [best[0].text for best in task.translate(run.variables, pairs.source)]
    source_lengths = [len(ids) for ids in text.encode(vocabulary.source, pairs.source)]
    hypotheses, references = (text.encode(vocabulary.target, side) for side in (translations, pairs.target))
    return by_length(source_lengths, hypotheses, references, width)


def by_length(
    lengths: Sequence[int], hypotheses: Sequence[Sequence[int]], references: Sequence[Sequence[int]], width: int = 5
) -> list[Bucket]:
    """Returns the buckets 1 to `width`, `width` + 1 to 2 `width`, ... of source lengths, without empty ones.

    Hypotheses and references are ids without eos. Accuracy is over all positions of a bucket, not a mean of means.
    """
    counts = []
    for source, hypothesis, reference in zip(lengths, hypotheses, references, strict=True):
        same = sum(map(operator.eq, hypothesis, reference))
        counts.append((source, hypothesis == reference, same, max(len(hypothesis), len(reference))))
    length, exact, matches, positions = np.array(counts, np.int64).reshape(-1, 4).T
    buckets = []
    for longest in range(width, length.max(initial=0) + width, width):
        inside = (longest - width < length) & (length <= longest)
        if inside.any():
            shares = float(exact[inside].mean()), float(matches[inside].sum() / positions[inside].sum())
            buckets.append(Bucket(longest - width + 1, longest, int(inside.sum()), *shares))
    return buckets
