"""Translation as a workload: parallel text, a subword vocabulary, and translations of plain text."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from attnjax import data, models
from attnjax.data.text import vocabulary as text
from attnjax.data.text.corpus import encode_pairs
from attnjax.data.text.sources import PairSource, open_pairs
from attnjax.errors import UserError
from attnjax.metrics import bleu as text_metrics
from attnjax.objectives.sequence import Translation
from attnjax.runs.log import mean_over
from attnjax.tasks.pairs import VOCABULARY_FOLDER, TrainingPairs, eval_batches, run_vocabulary, with_perplexity
from attnjax.tasks.report import Report
from attnjax.tasks.search import GREEDY, Candidate, Searcher
from attnjax.training import devices as parallel
from attnjax.training.step import make_eval_step


@dataclasses.dataclass(frozen=True)
class TranslationWorkload:
    """Sentence pairs; `sources` are the open splits, "train" and perhaps "validation", while training."""

    config: ConfigDict
    vocabulary: text.Vocabulary
    sources: dict[str, PairSource] = dataclasses.field(default_factory=dict)

    unit = "tokens"
    shown = ("source", "target")
    best_metrics = ("bleu", "exact_match", "accuracy", "loss")

    @classmethod
    def for_training(cls, config: ConfigDict, workdir: Path) -> "TranslationWorkload":
        sources = {"train": _open(config, config.data.train)}
        if config.data.validation:
            sources["validation"] = _open(config, config.data.validation)
        workload = cls(config, run_vocabulary(config, workdir, sources["train"]), sources)
        workload._check_measuring()
        return workload

    @classmethod
    def from_run(cls, config: ConfigDict, workdir: Path) -> "TranslationWorkload":
        return cls(config, text.load_vocabulary(workdir / VOCABULARY_FOLDER))

    def save(self, workdir: Path) -> None:
        text.save_vocabulary(self.vocabulary, workdir / VOCABULARY_FOLDER)

    @functools.cached_property
    def task(self) -> Translation:
        """The task with its model; UserError where the model cannot take the config's batches."""
        config = self.config
        sizes = (self.vocabulary.source.get_piece_size(), self.vocabulary.target.get_piece_size())
        model = models.build(config.model, source_vocabulary=sizes[0], target_vocabulary=sizes[1])
        if config.data.batching.method == "pack" and config.model.name != "transformer":
            raise UserError(f"data.batching.method=pack needs a transformer: a {config.model.name} reads on over pairs")
        limit = getattr(model, "max_length", config.data.batching.max_length)
        if limit < config.data.batching.max_length:
            raise UserError(
                f"data.batching.max_length={config.data.batching.max_length} is more than model.max_length={limit}"
            )
        return Translation(model, config.label_smoothing, config.smoothing_form)

    @property
    def example(self) -> dict[str, jax.ShapeDtypeStruct]:
        return {name: jax.ShapeDtypeStruct((1, 4), jnp.int32) for name in ("source", "target")}

    # Training

    @functools.cached_property
    def _training(self):
        return TrainingPairs(self.config, self.vocabulary, self.sources["train"])

    @property
    def steps_per_epoch(self) -> int:
        return self._training.layout.batches

    @property
    def header(self) -> list[str]:
        data = self.config.data
        lines = [
            f"{split:<11} {len(pairs):,} pairs {'-'.join(data.languages)}, {data.source}"
            for split, pairs in self.sources.items()
        ]
        return [*lines, *self._training.header]

    def fingerprint(self) -> dict[str, str]:
        return data.fingerprint(self.config, self.sources) | self._training.fingerprint()

    def batches(self):
        return self._training.batches()

    def batch_shapes(self, batch) -> list[dict[str, jax.ShapeDtypeStruct]]:
        return self._training.shapes(batch)

    # Measuring

    def validate(self, variables) -> dict[str, float]:
        """Loss and accuracy by teacher forcing; BLEU and exact match of greedy translations."""
        pairs = self.sources.get("validation")
        if pairs is None:
            return {}
        translations = [best[0].text for best in self.translate(variables, pairs.source, **GREEDY)]
        bleu = self._bleu(translations, pairs.target)[0]
        exact = text_metrics.exact_match(translations, pairs.target)
        return self._measure(pairs, variables) | {"bleu": bleu, "exact_match": exact}

    def test(self, split: str, variables) -> Report:
        """Translates a split as `config.decoding` says; UserError if a sentence is longer than the model's limit."""
        config, pairs = self.config, self.open_split(split)
        translations = [best[0].text for best in self.translate(variables, pairs.source)]
        scores = {"bleu": self._bleu(translations, pairs.target), "chrf": text_metrics.chrf(translations, pairs.target)}
        if config.bleu.moses:
            scores["tokenised_bleu"] = text_metrics.tokenised_bleu(
                translations, pairs.target, language=config.data.languages[1], lowercase=config.bleu.lowercase
            )
        metrics = {name: value for name, (value, _) in scores.items()}
        metrics["exact_match"] = text_metrics.exact_match(translations, pairs.target)
        return Report(
            examples={"pairs": len(pairs)},
            metrics=metrics | self._measure(pairs, variables),
            notes={name: signature for name, (_, signature) in scores.items()},
            files={"txt": "".join(f"{line}\n" for line in translations)},
        )

    def _bleu(self, translations, references):
        options = self.config.bleu
        return text_metrics.bleu(translations, references, tokenize=options.tokenize, lowercase=options.lowercase)

    def _measure(self, pairs, variables):
        batches = eval_batches(self.config, self.vocabulary, pairs)
        return with_perplexity(mean_over(self._eval_step, variables, batches))

    @functools.cached_property
    def _eval_step(self):
        return parallel.of(self.config).evaluate(make_eval_step(self.task))

    def open_split(self, split: str) -> PairSource:
        """Opens a split to translate; UserError if a sentence is longer than the model's limit."""
        pairs = _open(self.config, split)
        self._check_lengths(pairs)
        return pairs

    def _check_measuring(self):
        """Raises UserError for what would otherwise stop the first validation, or the test after the training."""
        self._searcher.check()
        self._bleu(["a"], ["a"])
        if "validation" in self.sources:
            self._check_lengths(self.sources["validation"])

    def _check_lengths(self, pairs):
        encoded = encode_pairs(pairs, self.vocabulary)
        longest = int(encoded.lengths.argmax())
        if encoded.lengths[longest] > self.limit:
            length, limit = encoded.lengths[longest], self.limit
            raise UserError(f"{pairs.name(longest)} has {length} subwords, more than the model's limit of {limit}")

    # Translating

    @property
    def limit(self) -> int:
        """The most subwords that the model takes, eos counted."""
        return getattr(self.task.model, "max_length", 1024)

    def encode(self, lines: Sequence[str]) -> list[list[int]]:
        """Returns the source subwords of each line, eos last."""
        return [[*ids, text.EOS] for ids in text.encode(self.vocabulary.source, lines)]

    def cut(self, ids: list[int]) -> list[int]:
        """Returns what the model reads of an encoded line: up to its limit, eos last."""
        return [*ids[:-1][: self.limit - 1], text.EOS]

    def translate(self, variables, lines: Sequence[str], **decoding) -> list[list[Candidate]]:
        """Returns the `n_best` translations of each line, best first; `decoding` goes before `config.decoding`.

        What is beyond the model's limit of a line is cut off.
        """
        return self._searcher.search(variables, [self.cut(ids) for ids in self.encode(lines)], **decoding)

    @functools.cached_property
    def _searcher(self):
        return Searcher(self.config, self.task, self.vocabulary.target, self.limit)


def _open(config, split):
    data = config.data
    if len(data.languages) != 2:
        raise UserError(f"data.languages={tuple(data.languages)}: it should be two, from and to, like ('en', 'de')")
    source, target = data.languages
    return open_pairs(
        data.source, split, source=source, target=target, data_dir=data.data_dir, skip_blank=data.skip_blank
    )
