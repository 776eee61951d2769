import pytest
import sacrebleu

from attnjax.errors import UserError
from attnjax.metrics import bleu as text_metrics

HYPOTHESES = ["The cat sat on the mat.", "a dog isn't here, today", "two dogs are running in the snow"]
REFERENCES = ["The cat sits on the mat.", "A dog isn't here today!", "Two dogs are running through the snow."]


@pytest.mark.parametrize("tokenize", ["13a", "intl", "char", "none"])
@pytest.mark.parametrize("lowercase", [False, True])
def test_bleu_is_sacrebleus(tokenize, lowercase):
    value, signature = text_metrics.bleu(HYPOTHESES, REFERENCES, tokenize=tokenize, lowercase=lowercase)
    expected = sacrebleu.corpus_bleu(HYPOTHESES, [REFERENCES], tokenize=tokenize, lowercase=lowercase).score
    assert 0 < value < 100 and value == pytest.approx(expected)
    assert f"tok:{tokenize}" in signature and f"case:{'lc' if lowercase else 'mixed'}" in signature
    assert f"version:{sacrebleu.__version__}" in signature


def test_bleu_of_the_same_text_is_100_and_case_counts_unless_lowercased():
    upper = [line.upper() for line in REFERENCES]
    assert text_metrics.bleu(REFERENCES, REFERENCES)[0] == pytest.approx(100)
    assert text_metrics.bleu(upper, REFERENCES)[0] < 10
    assert text_metrics.bleu(upper, REFERENCES, lowercase=True)[0] == pytest.approx(100)


def test_chrf_is_sacrebleus():
    value, signature = text_metrics.chrf(HYPOTHESES, REFERENCES)
    assert 0 < value < 100 and value == pytest.approx(sacrebleu.corpus_chrf(HYPOTHESES, [REFERENCES]).score)
    assert "nc:6" in signature and "nw:0" in signature and "case:mixed" in signature


MOSES = {
    "en": (HYPOTHESES[1], REFERENCES[1], "a dog isn 't here , today", "A dog isn 't here today !"),
    "fr": (
        "C'est l'une d\u2019elles dans la ville.",
        "Oui, c'est l'une d\u2019elles dans la rue.",
        "C' est l' une d' elles dans la ville .",
        "Oui , c' est l' une d' elles dans la rue .",
    ),
}


@pytest.mark.parametrize("language", MOSES)
def test_tokenised_bleu_is_of_moses_tokens(language):
    *raw, hypothesis, reference = MOSES[language]
    value, signature = text_metrics.tokenised_bleu(raw[:1], raw[1:], language=language)
    expected = sacrebleu.corpus_bleu([hypothesis], [[reference]], tokenize="none", force=True).score
    assert value == pytest.approx(expected) and abs(value - text_metrics.bleu(raw[:1], raw[1:])[0]) > 5
    assert f"tok:moses-{language}" in signature and "case:mixed" in signature and "tok:none" not in signature


def test_tokenised_bleu_of_the_same_text_is_100():
    upper = [line.upper() for line in REFERENCES]
    assert text_metrics.tokenised_bleu(REFERENCES, REFERENCES, language="en")[0] == pytest.approx(100)
    assert text_metrics.tokenised_bleu(upper, REFERENCES, language="en")[0] < 50
    value, signature = text_metrics.tokenised_bleu(upper, REFERENCES, language="en", lowercase=True)
    assert value == pytest.approx(100) and "case:lc" in signature


def test_exact_match_is_character_by_character():
    assert text_metrics.exact_match(["a", "b", "C", "d "], ["a", "b", "c", "d"]) == 0.5
    with pytest.raises(ValueError, match="zip"):
        text_metrics.exact_match(["a"], ["a", "b"])


@pytest.mark.parametrize(
    ("tokenize", "message"),
    [("13b", "unknown bleu.tokenize '13b', did you mean '13a'?"), ("ja-mecab", "bleu.tokenize=ja-mecab: ")],
)
def test_a_tokeniser_that_is_unknown_or_unavailable(tokenize, message, monkeypatch):
    def missing():
        raise RuntimeError("\nit needs more packages\n")

    monkeypatch.setattr("sacrebleu.metrics.bleu._get_tokenizer", lambda name: missing)
    with pytest.raises(UserError) as error:
        text_metrics.bleu(HYPOTHESES, REFERENCES, tokenize=tokenize)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)
