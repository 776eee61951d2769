"""BLEU and chrF of translations with sacreBLEU, and tokenised BLEU with the Moses tokeniser."""

import functools
import logging
import re
from collections.abc import Sequence
from typing import Any

import sacrebleu

from attnjax.errors import UserError, check_choice


def bleu(
    hypotheses: Sequence[str], references: Sequence[str], *, tokenize: str = "13a", lowercase: bool = False
) -> tuple[float, str]:
    """Returns corpus BLEU (Papineni et al. 2002) in percent of detokenised text, and sacreBLEU's signature (Post 2018).

    UserError for an unknown tokeniser, or one whose packages or files are missing.
    """
    check_choice("bleu.tokenize", tokenize, sacrebleu.BLEU.TOKENIZERS)
    try:
        metric = sacrebleu.BLEU(tokenize=tokenize, lowercase=lowercase)
    except (ImportError, RuntimeError, OSError) as error:
        raise UserError(f"bleu.tokenize={tokenize}: {' '.join(str(error).split())}") from error
    return _score(metric, hypotheses, references)


def words_bleu(hypotheses: Sequence[str], references: Sequence[Sequence[str]], order: int) -> tuple[float, str]:
    """Returns corpus BLEU-`order` in percent and a signature; tokens are split at blanks, references may be several."""
    most = max(map(len, references))
    # sacreBLEU takes the first references of all texts, then the second ones, and so on; None where a text has fewer.
    streams: list[Any] = [[texts[i] if i < len(texts) else None for texts in references] for i in range(most)]
    metric = sacrebleu.BLEU(tokenize="none", max_ngram_order=order, force=True)
    return metric.corpus_score(list(hypotheses), streams).score, f"{metric.get_signature()}|n:{order}|words"


def chrf(hypotheses: Sequence[str], references: Sequence[str], *, lowercase: bool = False) -> tuple[float, str]:
    """Returns corpus chrF2 in percent (Popovic 2015) and its signature."""
    return _score(sacrebleu.CHRF(lowercase=lowercase), hypotheses, references)


def tokenised_bleu(
    hypotheses: Sequence[str], references: Sequence[str], *, language: str, lowercase: bool = False
) -> tuple[float, str]:
    """Returns BLEU of Moses tokens in percent, as papers before sacreBLEU report it, and its signature.

    Values are comparable only if preprocessing is the same: here Moses' punctuation normalisation and tokeniser for
    `language`, then optional lower-casing, on both sides, as Multi30k's scripts prepare the references.
    """
    # An eighth of the time that a command takes to start, so only where it is used.
    from sacremoses import MosesPunctNormalizer, MosesTokenizer

    normalise, tokenise = MosesPunctNormalizer(language).normalize, MosesTokenizer(language).tokenize
    sides = [
        [tokenise(normalise(line), return_str=True, escape=False) for line in side] for side in (hypotheses, references)
    ]
    metric = sacrebleu.BLEU(tokenize="none", lowercase=lowercase, force=True)
    value, signature = _score(metric, *sides)
    return value, signature.replace("tok:none", f"tok:moses-{language}")


def exact_match(hypotheses: Sequence[str], references: Sequence[str], *, lowercase: bool = False) -> float:
    """Returns the share of translations that equal their reference, character by character."""
    pairs = zip(hypotheses, references, strict=True)
    return sum(a.lower() == b.lower() if lowercase else a == b for a, b in pairs) / len(references)


# Scripts that are not divided into words by blanks (in Korean, into very long ones) -> sacreBLEU's tokeniser for them.
# Japanese uses the letters of Chinese too, so it comes first.
_SCRIPTS = {
    r"[\u3040-\u30ff]": "ja-mecab",
    r"[\u1100-\u11ff\uac00-\ud7af]": "ko-mecab",
    r"[\u3400-\u4dbf\u4e00-\u9fff]": "zh",
    r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]": "flores200",  # Thai, Lao, Burmese, Khmer
}
_AT_BLANKS = ("13a", "intl", "none")


def needed_tokeniser(references: Sequence[str]) -> str:
    """Returns sacreBLEU's tokeniser for references that blanks do not divide into words, "" for others.

    It is that of a script with at least a tenth of the letters of the first thousand references.
    """
    text = "".join(references[:1000])
    letters = sum(map(str.isalpha, text))
    return next((name for script, name in _SCRIPTS.items() if len(re.findall(script, text)) * 10 > letters), "")


def check_tokeniser(tokenize: str, references: Sequence[str]) -> None:
    """Warns, once, if a tokeniser does not divide the references into words: Chinese, Japanese, Korean and others."""
    if tokenize in _AT_BLANKS and (needed := needed_tokeniser(references)):
        _warn(f"bleu.tokenize={tokenize} divides text at blanks: for this target language use {needed}, or char")


def check_words(references: Sequence[str]) -> None:
    """Warns, once, if blanks do not divide captions into words, by which they are measured."""
    if needed_tokeniser(references):
        _warn("captions are measured by the words between blanks: divide those of this language into words beforehand")


@functools.cache
def _warn(message: str) -> None:
    logging.warning(message)


def _score(metric, hypotheses, references):
    value = metric.corpus_score(list(hypotheses), [list(references)]).score
    return value, str(metric.get_signature())
