"""CIDEr-D, how much a caption says what people say of the image (Vedantam et al. 2015)."""

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

ORDERS = 4
SIGMA = 6.0  # of the penalty on another length

_WORD = re.compile(r"\w+(?:['\u2019-]\w+)*")


def words(text: str) -> str:
    """Returns the lower-case words of a text with blanks between, as captions are compared: without punctuation."""
    return " ".join(_WORD.findall(text.lower()))


def cider(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Returns the mean CIDEr-D of captions, each against all references of its image; 10 at most, 1 is like a person's.

    Texts are cut at blanks: give them `words`. How rare an n-gram is, is counted over these images' references, so
    values compare on one test set only. As pycocoevalcap computes it, with its factor of 10; a value that papers call
    114 is 1.14 here.
    """
    counts = [[_ngrams(text) for text in texts] for texts in references]
    frequency = Counter(ngram for image in counts for ngram in set().union(*image))
    images = math.log(len(references))

    def vectors(ngrams):
        """Returns for each order the weight of each n-gram, and their norm."""
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
    return sum(count for ngram, count in ngrams.items() if len(ngram) == 2)  # as pycocoevalcap, by its bigrams


def _similarity(own, other, difference):
    """Returns the mean over orders of the cosine, with what the caption repeats cut down to the reference's count."""
    total = 0.0
    for (a, a_norm), (b, b_norm) in zip(own, other, strict=True):
        if a_norm and b_norm:
            total += sum(min(weight, b.get(ngram, 0)) * b.get(ngram, 0) for ngram, weight in a.items()) / (
                a_norm * b_norm
            )
    return math.exp(-(difference**2) / (2 * SIGMA**2)) * total / ORDERS
