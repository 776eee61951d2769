import math

import pytest
import sacrebleu

from attnjax.metrics import bleu as text_metrics
from attnjax.metrics.cider import cider, words

REFERENCES = [["a b", "a c"], ["a d", "d d"], ["e f g h", "e f h g"]]


def test_by_hand():
    """Three images: "a" occurs in two of them, so its IDF is ln(3/2); that of b, c and all bigrams is ln 3."""
    rare, common = math.log(3), math.log(3 / 2)
    own = math.hypot(common, rare)
    # Against "a b" unigrams and bigrams are equal; against "a c" only the unigram "a" is.
    first = (2 + common**2 / own**2) / 4 / 2
    # "d d d" has one more bigram. Clipped to the one d of the reference "a d": min(3, 1) * 1 / (3 * |a d|).
    one = (rare * rare / (3 * rare * own)) / 4
    # Against "d d": min(3, 2) * 2 / (3 * 2) for d, min(2, 1) * 1 / (2 * 1) for d d.
    two = (2 / 3 + 1 / 2) / 4
    second = math.exp(-1 / 72) * (one + two) / 2
    assert cider(["a b", "d d d", "x"], REFERENCES) == pytest.approx(10 * (first + second + 0) / 3)


def test_equal_captions_score_highest_and_disjoint_ones_0():
    same = [texts[0] for texts in REFERENCES]
    near = ["a b c", "d a", "e f g"]
    assert 10 > cider(same, REFERENCES) > cider(near, REFERENCES) > cider(near[::-1], REFERENCES)
    assert cider(["", "x y", "a"], REFERENCES) == 0
    assert cider(same, [[text] for text in same]) == pytest.approx(10 * (2 + 2 + 4) / 4 / 3)


def test_words_are_lower_case_without_punctuation():
    assert words("  Two men -- don't stop , a T-shirt (red) .") == "two men don't stop a t-shirt red"
    assert words("...") == ""


def test_bleu_of_words_by_hand():
    """The first: 2 of 4 unigrams match; the closest references are as long as the hypotheses, so no brevity penalty."""
    value, signature = text_metrics.words_bleu(["a b b", "d"], [["a b c", "b x y z w"], ["e"]], 1)
    assert value == pytest.approx(100 * 2 / 4) and signature.endswith("n:1|words")
    value, _ = text_metrics.words_bleu(["a b b", "d"], [["a b c", "b x b", "b"], ["d"]], 2)
    assert value == pytest.approx(100 * math.sqrt(4 / 4 * 1 / 2))
    value, _ = text_metrics.words_bleu(["a"], [["a b c", "c b a d"]], 1)
    assert value == pytest.approx(100 * math.exp(1 - 3 / 1))


def test_bleu_of_words_is_sacrebleus_and_takes_any_number_of_references():
    texts = ["a dog runs on the grass", "two men sit on a red bench"]
    one = [["the dog runs on green grass"], ["two men sit on the bench"]]
    two = [[*one[0], "a dog runs on the lawn"], [*one[1], "men sit on a red bench"]]
    for references in (one, two):
        streams = [list(stream) for stream in zip(*references, strict=True)]
        value, _ = text_metrics.words_bleu(texts, references, 4)
        assert value == pytest.approx(sacrebleu.corpus_bleu(texts, streams, tokenize="none", force=True).score)
    mixed, _ = text_metrics.words_bleu(texts, [two[0], one[1]], 4)
    again, _ = text_metrics.words_bleu(texts, [two[0], one[1] * 2], 4)
    assert mixed == pytest.approx(again) and mixed < text_metrics.words_bleu(texts, two, 4)[0]
