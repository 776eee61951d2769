"""How far a translator reaches: its accuracy against the length of what it translates."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from attnjax.data.text import vocabulary as text
from attnjax.runs.folder import Run


class Bucket(NamedTuple):
    """Pairs with sources of `shortest` to `longest` subwords, eos not counted.

    `exact_match` is the share of translations that are their reference. `accuracy` is the share of places at which
    both have the same subword, among the places that either has, so that what is missing or too much counts as wrong.
    """

    shortest: int
    longest: int
    pairs: int
    exact_match: float
    accuracy: float


def measure(run: Run, width: int = 5) -> list[Bucket]:
    """Translates the run's test split as its config says, and returns `by_length` of it, by subwords.

    Raises:
        UserError: a run of another task, or a sentence beyond the model's limit.
    """
    run.expect("translation")
    workload = run.workload
    pairs = workload.open_split(run.config.data.test)
    translations = [best[0].text for best in workload.translate(run.variables, pairs.source)]
    vocabulary = workload.vocabulary
    sources = text.encode(vocabulary.source, pairs.source)
    hypotheses, references = (text.encode(vocabulary.target, side) for side in (translations, pairs.target))
    return by_length([len(ids) for ids in sources], hypotheses, references, width)


def by_length(
    lengths: Sequence[int], hypotheses: Sequence[Sequence[int]], references: Sequence[Sequence[int]], width: int = 5
) -> list[Bucket]:
    """Returns the buckets 1 to `width`, `width` + 1 to 2 `width`, ... of source lengths, those that have pairs.

    Hypotheses and references are ids without eos. Sums over places and pairs, not means of means.
    """
    rows = zip(lengths, hypotheses, references, strict=True)
    counts = [
        (length, hypothesis == reference, _agreeing(hypothesis, reference), max(len(hypothesis), len(reference)))
        for length, hypothesis, reference in rows
    ]
    lengths, exact, agreeing, places = np.array(counts, np.int64).reshape(-1, 4).T
    buckets = []
    for longest in range(width, lengths.max(initial=0) + width, width):
        inside = (longest - width < lengths) & (lengths <= longest)
        if inside.any():
            accuracy = agreeing[inside].sum() / places[inside].sum()
            buckets.append(
                Bucket(longest - width + 1, longest, int(inside.sum()), float(exact[inside].mean()), float(accuracy))
            )
    return buckets


def _agreeing(hypothesis, reference):
    return sum(a == b for a, b in zip(hypothesis, reference, strict=False))
