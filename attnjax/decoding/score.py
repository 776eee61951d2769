"""Token sequences and their scores, whether found by a search or given."""

import flax
import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from attnjax.decoding.options import LENGTH_PENALTIES, Options


@flax.struct.dataclass
class Hypotheses:
    """Token sequences with their scores; a search returns leading axes (B, n).

    If fewer than n hypotheses were found, the last ones have length 0 and a score of -inf.
    """

    tokens: jax.Array  # (..., L) int32, eos included, then pad
    lengths: jax.Array  # (...) int32, counting eos
    scores: jax.Array  # (...) float32, summed log-probability divided by the length penalty
    log_probs: jax.Array  # (..., L) float32, the model's own (at temperature 1), also of forced tokens; 0 after eos


def normalise(total: jax.Array, lengths: ArrayLike, options: Options) -> jax.Array:
    """Returns summed log-probabilities divided by the length penalty of `lengths`, which count eos."""
    penalty = LENGTH_PENALTIES[options.length_penalty]
    return total / penalty(jnp.asarray(lengths, jnp.float32), options.alpha)


def score(logits: jax.Array, tokens: jax.Array, options: Options) -> Hypotheses:
    """Scores given sequences as a search does: for the output of a search, the result is equal to the search's.

    The exception is an eos that the maximum length forced where `options.score_forced_eos` is False.

    Args:
      logits: (..., T, V), by teacher forcing: those at position t are computed from bos and the tokens before t.
      tokens: (..., T) int32, ending with eos, padded with pad.
      options: only pad, length_penalty and alpha are used.
    """
    given = tokens != options.pad
    losses = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), tokens)
    log_probs = jnp.where(given, -losses, 0.0)
    lengths = given.sum(-1)
    return Hypotheses(tokens, lengths, normalise(log_probs.sum(-1), lengths, options), log_probs)
