"""Subword vocabularies: BPE and unigram, trained and applied by sentencepiece."""

import io
import os
import re
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import sentencepiece
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

from attnjax.errors import UserError, nearest
from attnjax.files import write_atomically

PAD, BOS, EOS, UNK = 0, 1, 2, 3
KINDS = ("bpe", "unigram")
_TOO_LARGE = re.compile(r"Vocabulary size too high .*<= (\d+)")
_TOO_SMALL = re.compile(r"smaller than required_chars\. \d+ vs (\d+)")

LONGEST_WORD = 5_000  # characters; from 2**16 on, sentencepiece ends the process, and unigrams take minutes before
_LONG_WORD = re.compile(rf"(\S{{{LONGEST_WORD}}})\S+")

_sampling_lock = threading.Lock()  # sentencepiece has one random seed per process


@dataclass(frozen=True)
class Sampling:
    """Subword regularisation: segments the training sentences randomly in every epoch; off by default.

    With BPE, `alpha` is the probability of skipping a merge (BPE-dropout, Provilkov et al. 2020, who use 0.1). With
    unigram, `alpha` is the exponent of the segmentations' probabilities, and `nbest` the number of segmentations to
    sample from, -1 for all (Kudo 2018, who uses 0.1 or 0.2 with -1).
    """

    alpha: float = 0.0
    nbest: int = -1

    def __post_init__(self):
        if not 0 <= self.alpha <= 1:
            raise UserError(f"alpha is {self.alpha}: it should be from 0 (no sampling) to 1")
        if self.nbest != -1 and self.nbest < 2:
            raise UserError(f"nbest is {self.nbest}: it should be 2 or more, or -1 for all")

    def __bool__(self) -> bool:
        return self.alpha > 0


@dataclass(frozen=True)
class Vocabulary:
    """The subwords of the source and the target language; a joint vocabulary is the same object twice.

    Ids 0 to 3 are pad, bos, eos and unk.
    """

    source: SentencePieceProcessor
    target: SentencePieceProcessor

    @property
    def joint(self) -> bool:
        return self.source is self.target


def train_vocabulary(
    source: Sequence[str],
    target: Sequence[str],
    *,
    size: int,
    kind: str = "bpe",
    joint: bool = True,
    lowercase: bool = False,
    coverage: float = 1.0,
) -> Vocabulary:
    """Learns `size` subwords, including the four special ones, from the training sentences.

    `kind` is "bpe" (Sennrich et al. 2016) or "unigram" (Kudo 2018). A joint vocabulary is learnt from both languages
    together; separate ones have `size` subwords each. Text is normalised with NFKC; `lowercase` also folds case, which
    decoding cannot undo. The rarest characters, beyond the share `coverage` of the text, become unk. Of words longer
    than `LONGEST_WORD` the rest is not learnt from. The result is deterministic. UserError if the kind is unknown or
    the sentences do not support the size, with the nearest possible.
    """
    if kind not in KINDS:
        raise UserError(f"unknown kind of vocabulary '{kind}': {nearest(kind, KINDS)}")
    if not 0.9 <= coverage <= 1:
        raise UserError(f"coverage is {coverage}: it should be from 0.9 to 1.0, the share of characters to keep")
    rule = "nmt_nfkc_cf" if lowercase else "nmt_nfkc"
    options = dict(vocab_size=size, model_type=kind, character_coverage=coverage, normalization_rule_name=rule)
    if joint:
        both = _train([*source, *target], options, "the sentences of both languages")
        return Vocabulary(both, both)
    of_source = _train(source, options, "the sentences of the source language")
    return Vocabulary(of_source, _train(target, options, "the sentences of the target language"))


def save_vocabulary(vocabulary: Vocabulary, folder: Path) -> list[Path]:
    """Writes `joint.model`, or `source.model` and `target.model`, to `folder`, and returns these files.

    Each is written atomically. Those of another vocabulary are removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = ("joint",) if vocabulary.joint else ("source", "target")
    files = [folder / f"{name}.model" for name in names]
    for other in set(folder.glob("*.model")) - set(files):
        other.unlink()
    for file, model in zip(files, (vocabulary.source, vocabulary.target), strict=False):
        write_atomically(file, model.serialized_model_proto())
    return files


def load_vocabulary(folder: Path) -> Vocabulary:
    """Reads what `save_vocabulary` wrote; UserError if it is missing, damaged or has other special ids."""
    joint, source, target = (folder / f"{name}.model" for name in ("joint", "source", "target"))
    if joint.is_file():
        both = _load(joint)
        return Vocabulary(both, both)
    if not (source.is_file() and target.is_file()):
        raise UserError(f"no vocabulary in {folder}: it should contain joint.model, or source.model and target.model")
    return Vocabulary(_load(source), _load(target))


def encode(
    model: SentencePieceProcessor,
    sentences: Sequence[str],
    sampling: Sampling | None = None,
    seed: Sequence[int] = (0,),
) -> list[list[int]]:
    """Returns the ids of each sentence, without bos and eos.

    With `sampling`, they are a function of `seed` and of the full list of sentences. UserError for `nbest` with BPE.
    """
    if not sampling:
        threads = os.cpu_count() or 1
        return model.encode(list(sentences), num_threads=threads if len(sentences) > 100 * threads else 1)
    if sampling.nbest != -1 and not _has_nbest(model):
        raise UserError(f"nbest is {sampling.nbest}: a BPE vocabulary has no list of the best segmentations, write -1")
    state = int(np.random.SeedSequence(seed).generate_state(1, np.uint32)[0])
    # sentencepiece encodes a list in new threads, whose random streams start at the seed. Several threads would divide
    # the sentences nondeterministically, so there is one.
    with _sampling_lock:
        sentencepiece.set_random_generator_seed(state)
        return model.encode(
            list(sentences), enable_sampling=True, alpha=sampling.alpha, nbest_size=sampling.nbest, num_threads=1
        )


def decode(model: SentencePieceProcessor, ids: Iterable[Sequence[int]]) -> list[str]:
    """Returns the text of each row of ids up to its first eos; pad and bos are dropped, unk becomes " ⁇ "."""
    rows = [np.asarray(row, np.int64).tolist() for row in ids]
    return model.decode([row[: row.index(EOS)] if EOS in row else row for row in rows])


def _train(sentences: Sequence[str], options: dict, place: str) -> SentencePieceProcessor:
    model = io.BytesIO()
    special = dict(pad_id=PAD, bos_id=BOS, eos_id=EOS, unk_id=UNK, pad_piece="<pad>")
    sentences = [_LONG_WORD.sub(r"\1", sentence) for sentence in sentences]
    longest = max((len(sentence.encode()) for sentence in sentences), default=0)
    try:
        SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            max_sentence_length=max(10, longest + 1),  # longer ones would be skipped; 10 is the minimum
            num_threads=1,  # the result depends on it
            minloglevel=2,
            **special,
            **options,
        )
    except RuntimeError as error:
        raise UserError(_training_error(str(error), options["vocab_size"], place)) from error
    return SentencePieceProcessor(model_proto=model.getvalue())


def _training_error(message: str, size: int, place: str) -> str:
    if found := _TOO_LARGE.search(message):
        return f"a vocabulary of {size} is too large for {place}: the largest possible is {found[1]}"
    if found := _TOO_SMALL.search(message):
        return f"a vocabulary of {size} is too small for {place}: their characters and the special ids need {found[1]}"
    return f"sentencepiece cannot learn a vocabulary of {size} from {place}: {message}"


def _load(path: Path) -> SentencePieceProcessor:
    try:
        data = path.read_bytes()
        if not data:  # sentencepiece would crash
            raise UserError(f"cannot read vocabulary {path}: it is empty")
        model = SentencePieceProcessor(model_proto=data)
        ids = (model.pad_id(), model.bos_id(), model.eos_id(), model.unk_id())
    except (OSError, RuntimeError) as error:
        raise UserError(f"cannot read vocabulary {path}: {error}") from error
    if ids != (PAD, BOS, EOS, UNK):
        raise UserError(f"vocabulary {path} has pad, bos, eos, unk as {ids}: they should be 0, 1, 2, 3")
    return model


def _has_nbest(model: SentencePieceProcessor) -> bool:
    try:
        return bool(model.nbest_encode_as_ids("a", 1))
    except RuntimeError:
        return False
