"""What to search for: lengths, constraints, and how a hypothesis is scored."""

import dataclasses

from attnjax.errors import UserError, nearest

# Divisors of a hypothesis' summed log-probability, by its length; lengths count eos.
LENGTH_PENALTIES = {
    "none": lambda length, alpha: 1.0,
    "average": lambda length, alpha: length**alpha,  # fairseq's lenpen; plain mean per token at alpha 1
    "gnmt": lambda length, alpha: ((5.0 + length) / 6.0) ** alpha,  # Wu et al. 2016, equation 14
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of a search; hashable, so that it can be a static argument of jit. UserError if they are impossible.

    All lengths count eos and not bos: where fairseq says max_len 200 and min_len 1, this is 201 and 2.
    """

    max_length: int  # of any output, and the width of the output's arrays; the last token there is always eos
    min_length: int = 1  # no eos before
    beam_size: int = 1  # hypotheses kept at each step; 1 for greedy search and sampling
    n_best: int = 1  # hypotheses returned
    length_penalty: str = "none"  # one of LENGTH_PENALTIES
    alpha: float = 1.0  # the penalty's strength
    early_stopping: bool = False  # stop at `beam_size` finished hypotheses, as fairseq does; else see `beam_search`
    no_repeat_ngram: int = 0  # no n-gram of this size twice in an output; 0 for no such rule
    pad: int = 0
    bos: int = 1  # the first token fed to the decoder; may be eos or pad, as in some published models
    eos: int = 2

    def __post_init__(self):
        if self.max_length < 1:
            raise UserError(f"max_length is {self.max_length}; it counts eos, so it must be at least 1")
        if not 1 <= self.min_length <= self.max_length:
            raise UserError(f"min_length is {self.min_length}; it must be from 1 to max_length, {self.max_length}")
        if self.beam_size < 1:
            raise UserError(f"beam_size is {self.beam_size}; it must be at least 1")
        if not 1 <= self.n_best <= self.beam_size:
            raise UserError(f"n_best is {self.n_best}; it must be from 1 to beam_size, {self.beam_size}")
        if self.length_penalty not in LENGTH_PENALTIES:
            raise UserError(
                f"unknown length_penalty '{self.length_penalty}', {nearest(self.length_penalty, LENGTH_PENALTIES)}"
            )
        if self.no_repeat_ngram < 0:
            raise UserError(
                f"no_repeat_ngram is {self.no_repeat_ngram}; it must be a size of at least 1, or 0 for none"
            )
        if self.pad == self.eos:
            raise UserError(f"pad and eos are both {self.eos}; they must differ, since outputs are padded after eos")
