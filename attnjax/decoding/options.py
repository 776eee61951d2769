"""Options of decoding: lengths, constraints, scoring, and what sampling draws from."""

import dataclasses
from collections.abc import Callable

from attnjax.errors import UserError, check_choice

# A hypothesis' score is its summed log-probability divided by one of these; lengths count eos.
LENGTH_PENALTIES: dict[str, Callable] = {
    "none": lambda length, alpha: 1.0,
    "average": lambda length, alpha: length**alpha,  # fairseq's lenpen; the mean per token if alpha is 1
    "gnmt": lambda length, alpha: ((5.0 + length) / 6.0) ** alpha,  # Wu et al. 2016, equation 14
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of a search; hashable, so usable as a static argument of jit. UserError for invalid values.

    Lengths count eos but not bos: fairseq's max_len 200 and min_len 1 are 201 and 2 here.
    """

    max_length: int  # of an output, and L, the width of the output arrays; eos is forced at the last position
    min_length: int = 1  # no eos before this
    beam_size: int = 1  # hypotheses kept at each step; 1 for greedy search and sampling
    n_best: int = 1  # hypotheses returned
    length_penalty: str = "none"  # one of LENGTH_PENALTIES
    alpha: float = 1.0  # strength of the length penalty
    early_stopping: bool = False  # stop at `beam_size` finished hypotheses, as fairseq does; see `beam_search`
    # An eos forced by the maximum length counts its own log-probability, as in fairseq; False: 0, as in transformers.
    score_forced_eos: bool = True
    no_repeat_ngram: int = 0  # no n-gram of this size occurs twice in an output; 0 for no such rule
    pad: int = 0
    bos: int = 1  # the first token fed to the decoder; some published models use eos or pad
    eos: int = 2

    def __post_init__(self):
        _check(self, "max_length", self.max_length >= 1, "at least 1, since it counts eos")
        _check(self, "min_length", 1 <= self.min_length <= self.max_length, f"from 1 to max_length, {self.max_length}")
        _check(self, "beam_size", self.beam_size >= 1, "at least 1")
        _check(self, "n_best", 1 <= self.n_best <= self.beam_size, f"from 1 to beam_size, {self.beam_size}")
        check_choice("length_penalty", self.length_penalty, LENGTH_PENALTIES)
        _check(self, "no_repeat_ngram", self.no_repeat_ngram >= 0, "at least 1, or 0 for none")
        if self.pad == self.eos:
            raise UserError(f"pad and eos are both {self.eos}; they must differ, since outputs are padded after eos")


@dataclasses.dataclass(frozen=True)
class SamplingOptions:
    """What `sample` draws; hashable like `Options`. UserError for invalid values."""

    num_samples: int = 1  # per example
    temperature: float = 1.0  # tokens are drawn from softmax(logits / temperature)
    top_k: int = 0  # draw from this many most probable tokens (Fan et al. 2018); 0 for all
    # Nucleus sampling: draw from the smallest set of most probable tokens, after top_k, with at least this total
    # probability (Holtzman et al. 2020, section 3.1); 1 for all.
    top_p: float = 1.0

    def __post_init__(self):
        _check(self, "num_samples", self.num_samples >= 1, "at least 1")
        _check(self, "temperature", self.temperature > 0, "above 0 (its limit at 0 is greedy search)")
        _check(self, "top_k", self.top_k >= 0, "at least 1, or 0 for all tokens")
        _check(self, "top_p", 0 < self.top_p <= 1, "above 0 and at most 1")


def _check(options, name, valid, rule):
    if not valid:
        raise UserError(f"{name} is {getattr(options, name)}; it must be {rule}")
