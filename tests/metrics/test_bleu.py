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


def test_lower_case_holds_for_every_metric():
    upper = [line.upper() for line in REFERENCES]
    assert text_metrics.exact_match(upper, REFERENCES) == 0
    assert text_metrics.exact_match(upper, REFERENCES, lowercase=True) == 1
    value, signature = text_metrics.chrf(upper, REFERENCES, lowercase=True)
    assert value == pytest.approx(100) and "case:lc" in signature
    assert text_metrics.chrf(upper, REFERENCES)[0] < 50


@pytest.mark.parametrize(
    ("text", "needed"),
    [
        ("\u4e24\u53ea\u72d7\u5728\u96ea\u5730\u91cc\u5954\u8dd1\u3002", "zh"),
        ("\u4e8c\u5339\u306e\u72ac\u304c\u96ea\u306e\u4e2d\u3092\u8d70\u308b", "ja-mecab"),
        ("\ub450 \ub9c8\ub9ac\uc758 \uac1c\uac00 \ub208 \uc18d\uc744 \ub2ec\ub9b0\ub2e4", "ko-mecab"),
        ("\u0e2a\u0e38\u0e19\u0e31\u0e02\u0e2a\u0e2d\u0e07\u0e15\u0e31\u0e27", "flores200"),
        ("zwei Hunde rennen durch den Schnee", ""),
        ("\u0434\u0432\u0435 \u0441\u043e\u0431\u0430\u043a\u0438 \u0431\u0435\u0433\u0443\u0442", ""),
        ("the sign says \u96ea, which means snow, in large black letters", ""),
        ("", ""),
    ],
)
def test_languages_without_blanks_need_another_tokeniser(text, needed, caplog):
    text_metrics._warn.cache_clear()
    assert text_metrics.needed_tokeniser([text]) == needed
    for _ in range(2):
        text_metrics.check_tokeniser("13a", [text])
    said = [f"bleu.tokenize=13a divides text at blanks: for this target language use {needed}, or char"]
    assert [record.message for record in caplog.records] == (said if needed else [])
    text_metrics.check_tokeniser("zh", [text])
    assert len(caplog.records) == bool(needed)
    assert needed in ("", *sacrebleu.BLEU.TOKENIZERS)
