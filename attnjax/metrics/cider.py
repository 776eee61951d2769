"""CIDEr-D: consensus of a caption with human captions of the same image (Vedantam et al. 2015)."""

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

ORDERS = 4
SIGMA = 6.0  # of the Gaussian length penalty

_WORD = re.compile(r"\w+(?:['\u2019-]\w+)*")


def words(text: str) -> str:
    """Normalises a caption for comparison: lower case, without punctuation, words separated by single blanks."""
    return " ".join(_WORD.findall(text.lower()))


def cider(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Returns the mean CIDEr-D, from 0 to 10, of captions, each against all references of its image.

    Texts are split at blanks: normalise them with `words` first. N-gram rarity (IDF) is computed from these references,
    so values are comparable on the same test set only. As in pycocoevalcap, with its factor of 10; papers report
    percent: 1.14 here is their 114.
    """
    counts = [[_ngrams(text) for text in texts] for texts in references]
    frequency = Counter(ngram for image in counts for ngram in set().union(*image))
    images = math.log(len(references))

    def vectors(ngrams):
        """Returns per order the TF-IDF weight of each n-gram, and the weights' norm."""
        found = [{} for _ in range(ORDERS)]
        for ngram, count in ngrams.items():
            found[len(ngram) - 1][ngram] = count * (images - math.log(max(1, frequency[ngram])))
        return [(weights, math.sqrt(sum(w * w for w in weights.values()))) for weights in found]

    scores = []
    for hypothesis, image in zip(map(_ngrams, hypotheses), counts, strict=True):
        own = vectors(hypothesis)
        similar = [_similarity(own, vectors(other), _length(hypothesis) - _length(other)) for other in image]
        scores.append(10 * np.mean(similar))
    return float(np.mean(scores))


def _ngrams(text: str) -> Counter:
    tokens = text.split()
    return Counter(tuple(tokens[i : i + n]) for n in range(1, ORDERS + 1) for i in range(len(tokens) - n + 1))


def _length(ngrams: Counter) -> int:
    return sum(count for ngram, count in ngrams.items() if len(ngram) == 2)  # in bigrams, as in pycocoevalcap


def _similarity(own, other, difference):
    """Returns the mean cosine over orders, counts clipped to the reference's, times the length penalty."""
    total = 0.0
    for (a, a_norm), (b, b_norm) in zip(own, other, strict=True):
        if a_norm and b_norm:
            product = sum(min(weight, b.get(ngram, 0)) * b.get(ngram, 0) for ngram, weight in a.items())
            total += product / (a_norm * b_norm)
    return math.exp(-(difference**2) / (2 * SIGMA**2)) * total / ORDERS
