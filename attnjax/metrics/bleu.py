"""BLEU and chrF of translations with sacreBLEU, and tokenised BLEU with the Moses tokeniser."""

from collections.abc import Sequence
from typing import Any

import sacrebleu
from sacremoses import MosesPunctNormalizer, MosesTokenizer

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


def chrf(hypotheses: Sequence[str], references: Sequence[str]) -> tuple[float, str]:
    """Returns corpus chrF2 in percent (Popovic 2015) and its signature."""
    return _score(sacrebleu.CHRF(), hypotheses, references)


def tokenised_bleu(
    hypotheses: Sequence[str], references: Sequence[str], *, language: str, lowercase: bool = False
) -> tuple[float, str]:
    """Returns BLEU of Moses tokens in percent, as papers before sacreBLEU report it, and its signature.

    Values are comparable only if preprocessing is the same: here Moses' punctuation normalisation and tokeniser for
    `language`, then optional lower-casing, on both sides, as Multi30k's scripts prepare the references.
    """
    normalise, tokenise = MosesPunctNormalizer(language).normalize, MosesTokenizer(language).tokenize
    sides = [
        [tokenise(normalise(line), return_str=True, escape=False) for line in side] for side in (hypotheses, references)
    ]
    metric = sacrebleu.BLEU(tokenize="none", lowercase=lowercase, force=True)
    value, signature = _score(metric, *sides)
    return value, signature.replace("tok:none", f"tok:moses-{language}")


def exact_match(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """Returns the share of translations that equal their reference, character by character."""
    return sum(a == b for a, b in zip(hypotheses, references, strict=True)) / len(references)


def _score(metric, hypotheses, references):
    value = metric.corpus_score(list(hypotheses), [list(references)]).score
    return value, str(metric.get_signature())
