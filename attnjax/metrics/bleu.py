"""BLEU and chrF of translations, by sacreBLEU; Moses' tokeniser where a paper reports tokenised BLEU."""

from collections.abc import Sequence

import sacrebleu
from sacremoses import MosesPunctNormalizer, MosesTokenizer

from attnjax.errors import UserError, nearest


def bleu(
    hypotheses: Sequence[str], references: Sequence[str], *, tokenize: str = "13a", lowercase: bool = False
) -> tuple[float, str]:
    """Returns corpus BLEU in percent (Papineni et al. 2002) and its signature (Post 2018), of detokenised text.

    UserError for an unknown tokeniser, or one that needs packages or files that are not there.
    """
    if tokenize not in sacrebleu.BLEU.TOKENIZERS:
        known = nearest(tokenize, sacrebleu.BLEU.TOKENIZERS)
        raise UserError(f"unknown bleu.tokenize '{tokenize}', {known}")
    try:
        metric = sacrebleu.BLEU(tokenize=tokenize, lowercase=lowercase)
    except (ImportError, RuntimeError, OSError) as error:
        raise UserError(f"bleu.tokenize={tokenize}: {' '.join(str(error).split())}") from error
    return _score(metric, hypotheses, references)


def words_bleu(hypotheses: Sequence[str], references: Sequence[Sequence[str]], order: int) -> tuple[float, str]:
    """Returns corpus BLEU-`order` in percent of texts cut at blanks, each against any number of references."""
    most = max(map(len, references))
    # sacreBLEU takes the first, the second, ... reference of all texts; None where a text has no more.
    streams = [[texts[i] if i < len(texts) else None for texts in references] for i in range(most)]
    metric = sacrebleu.BLEU(tokenize="none", max_ngram_order=order, force=True)
    return metric.corpus_score(list(hypotheses), streams).score, f"{metric.get_signature()}|n:{order}|words"


def chrf(hypotheses: Sequence[str], references: Sequence[str]) -> tuple[float, str]:
    """Returns corpus chrF2 in percent (Popovic 2015) and its signature."""
    return _score(sacrebleu.CHRF(), hypotheses, references)


def tokenised_bleu(
    hypotheses: Sequence[str], references: Sequence[str], *, language: str, lowercase: bool = False
) -> tuple[float, str]:
    """Returns BLEU in percent of Moses' tokens: what papers before sacreBLEU report, comparable within one recipe only.

    Both sides get Moses' punctuation normalisation and tokeniser for `language`, then are lower-cased if so asked, as
    Multi30k's own scripts do with the references.
    """
    normalise, tokenise = MosesPunctNormalizer(language).normalize, MosesTokenizer(language).tokenize
    sides = [
        [tokenise(normalise(line), return_str=True, escape=False) for line in side] for side in (hypotheses, references)
    ]
    metric = sacrebleu.BLEU(tokenize="none", lowercase=lowercase, force=True)
    value, signature = _score(metric, *sides)
    return value, signature.replace("tok:none", f"tok:moses-{language}")


def exact_match(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """Returns the share of translations that are their reference, letter by letter."""
    return sum(a == b for a, b in zip(hypotheses, references, strict=True)) / len(references)


def _score(metric, hypotheses, references):
    value = metric.corpus_score(list(hypotheses), [list(references)]).score
    return value, str(metric.get_signature())
