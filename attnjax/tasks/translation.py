"""Translation as a task: parallel text, a subword vocabulary, and translations of plain text."""

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from attnjax import models
from attnjax.data.text.corpus import encode_pairs
from attnjax.data.text.sources import PairSource, open_pairs
from attnjax.data.text.vocabulary import EOS, Vocabulary, encode, load_vocabulary
from attnjax.errors import UserError
from attnjax.metrics import bleu as metrics
from attnjax.nn.kernels import resolve_precision
from attnjax.objectives.sequence import SequenceObjective
from attnjax.tasks.pairs import VOCABULARY_FOLDER, TextTask, TrainingPairs, run_vocabulary
from attnjax.tasks.report import TestReport
from attnjax.tasks.search import GREEDY, Candidate, Searcher
from attnjax.tasks.splits import Splits
from attnjax.training.devices import Devices
from attnjax.weights import huggingface


@dataclasses.dataclass(frozen=True)
class TranslationTask(TextTask):
    """Translation of sentences; see `attnjax.tasks.Task`. bleu: the config's `bleu` group. training: while training."""

    objective: SequenceObjective
    vocabulary: Vocabulary
    languages: tuple[str, str]
    data: Splits[PairSource]
    searcher: Searcher
    bleu: Mapping[str, Any]
    devices: Devices
    training: TrainingPairs | None = None

    shown: ClassVar[tuple[str, ...]] = ("source", "target")

    @classmethod
    def for_training(cls, config: ConfigDict, devices: Devices, workdir: Path | None) -> "TranslationTask":
        data = _splits(config.data).for_training()
        vocabulary = run_vocabulary(config, workdir, data.train)
        task = dataclasses.replace(
            cls.with_vocabulary(config, devices, vocabulary),
            data=data,
            training=TrainingPairs.from_config(config, devices, vocabulary, data.train),
        )
        task._check_evaluation()
        return task

    @classmethod
    def from_run(cls, config: ConfigDict, devices: Devices, workdir: Path) -> "TranslationTask":
        return cls.with_vocabulary(config, devices, load_vocabulary(workdir / VOCABULARY_FOLDER))

    @classmethod
    def with_vocabulary(cls, config: ConfigDict, devices: Devices, vocabulary: Vocabulary) -> "TranslationTask":
        """Returns the task with no data open; UserError where the model cannot take the config's batches."""
        dtype = resolve_precision(config.precision)
        model = models.build(config.model, dtype=dtype, **vocabulary_sizes(vocabulary))
        batching = config.data.batching
        if batching.method == "pack" and "source_segments" not in inspect.signature(model.__call__).parameters:
            raise UserError(f"data.batching.method=pack needs a transformer: a {config.model.name} reads on over pairs")
        if getattr(model, "max_length", batching.max_length) < batching.max_length:
            raise UserError(
                f"data.batching.max_length={batching.max_length} is more than model.max_length={model.max_length}"
            )
        frozen = tuple(config.optimizer.freeze)
        objective = SequenceObjective(model, config.label_smoothing, config.smoothing_form, frozen=frozen)
        limit = getattr(model, "max_length", 1024)
        return cls(
            objective=objective,
            vocabulary=vocabulary,
            languages=tuple(config.data.languages),
            data=_splits(config.data),
            searcher=Searcher(
                objective, vocabulary.target, limit, devices, dict(config.decoding), config.data.eval_tokens
            ),
            bleu=dict(config.bleu),
            devices=devices,
        )

    def export(self, folder: Path, params: Any) -> str:
        """Writes the model with `params`, and its subwords, for Hugging Face; returns the classes that read it."""
        own = self.vocabulary, self.languages, self.searcher.decoding
        return huggingface.write_translator(folder, self.objective.model, params, *own)

    @property
    def example(self) -> dict[str, jax.ShapeDtypeStruct]:
        return {name: jax.ShapeDtypeStruct((1, 4), jnp.int32) for name in ("source", "target")}

    # Training

    @property
    def header(self) -> list[str]:
        lines = self.data.header(lambda pairs: f"{len(pairs):,} pairs {'-'.join(self.languages)}")
        return [*lines, *self.pairs.header]

    def fingerprint(self) -> dict[str, str]:
        return self.data.fingerprint(self.pairs.seed) | self.pairs.fingerprint()

    def batches(self):
        return self.pairs.batches()

    # Evaluation

    def validate(self, variables) -> dict[str, float]:
        """Loss and accuracy by teacher forcing; BLEU and exact match of greedy translations."""
        pairs = self.data.validation
        if pairs is None:
            return {}
        translations = [best[0].text for best in self.translate(variables, pairs.source, **GREEDY)]
        bleu = self._bleu(translations, pairs.target)[0]
        exact = metrics.exact_match(translations, pairs.target, lowercase=self.bleu["lowercase"])
        return self.measure(variables, self.eval_batches(pairs)) | {"bleu": bleu, "exact_match": exact}

    def test(self, split: str, variables) -> TestReport:
        """Translates a split as `config.decoding` says; UserError if a sentence is longer than the model's limit."""
        pairs = self.open_split(split)
        translations = [best[0].text for best in self.translate(variables, pairs.source)]
        sides, case = (translations, pairs.target), {"lowercase": self.bleu["lowercase"]}
        scores = {"bleu": self._bleu(*sides), "chrf": metrics.chrf(*sides, **case)}
        if self.bleu["moses"]:
            scores["tokenised_bleu"] = metrics.tokenised_bleu(*sides, language=self.languages[1], **case)
        values = {name: value for name, (value, _) in scores.items()}
        values["exact_match"] = metrics.exact_match(*sides, **case)
        return TestReport(
            examples={"pairs": len(pairs)},
            metrics=values | self.measure(variables, self.eval_batches(pairs)),
            notes={name: signature for name, (_, signature) in scores.items()},
            files={"txt": "".join(f"{line}\n" for line in translations)},
        )

    def open_split(self, split: str) -> PairSource:
        """Opens a split to translate; UserError if a sentence is longer than the model's limit."""
        pairs = self.data.open(split)
        self._check_lengths(pairs)
        return pairs

    def _bleu(self, translations, references):
        metrics.check_tokeniser(self.bleu["tokenize"], references)
        options = {name: self.bleu[name] for name in ("tokenize", "lowercase")}
        return metrics.bleu(translations, references, **options)

    def _check_evaluation(self):
        """Raises UserError for what would otherwise stop the first validation, or the test after the training."""
        self.searcher.check()
        self._bleu(["a"], ["a"])
        if self.data.validation:
            metrics.check_tokeniser(self.bleu["tokenize"], self.data.validation.target)
            self._check_lengths(self.data.validation)

    def _check_lengths(self, pairs):
        encoded = encode_pairs(pairs, self.vocabulary)
        longest = int(encoded.lengths.argmax())
        if encoded.lengths[longest] > self.limit:
            length, limit = encoded.lengths[longest], self.limit
            raise UserError(f"{pairs.name(longest)} has {length} subwords, more than the model's limit of {limit}")

    # Translation

    def encode(self, lines: Sequence[str]) -> list[list[int]]:
        """Returns the source subwords of each line, eos last."""
        return [[*ids, EOS] for ids in encode(self.vocabulary.source, lines)]

    def truncate(self, ids: list[int]) -> list[int]:
        """Returns what the model reads of an encoded line: up to its limit, eos last."""
        return [*ids[:-1][: self.limit - 1], EOS]

    def translate(self, variables, lines: Sequence[str], **decoding) -> list[list[Candidate]]:
        """Returns the `n_best` translations of each line, best first; `decoding` overrides `config.decoding`.

        Lines longer than the model's limit are truncated.
        """
        return self.searcher.search(variables, [self.truncate(ids) for ids in self.encode(lines)], **decoding)


def vocabulary_sizes(vocabulary: Vocabulary) -> dict[str, int]:
    """Returns the fields of a model that come from the vocabulary."""
    return {
        "source_vocabulary": vocabulary.source.get_piece_size(),
        "target_vocabulary": vocabulary.target.get_piece_size(),
    }


def _splits(data):
    def open_split(split):
        if len(data.languages) != 2:
            raise UserError(f"data.languages={tuple(data.languages)}: it should be two, from and to, like ('en', 'de')")
        source, target = data.languages
        options = {"data_dir": data.data_dir, "skip_blank": data.skip_blank}
        return open_pairs(data.source, split, source=source, target=target, **options)

    return Splits.from_config(data, open_split)
