"""Sequences with their scores, found by a search or given."""

import flax
import jax
import jax.numpy as jnp
import optax

from attnjax.decoding.options import LENGTH_PENALTIES, Options


@flax.struct.dataclass
class Hypotheses:
    """Token sequences with their scores; a search returns leading axes (B, n).

    tokens: (..., L) int32, eos included, then pad. lengths: (...) int32, counting eos. scores: (...) float32, summed
    log-probability over length penalty. log_probs: (..., L) float32, the model's own for each token, forced or chosen,
    before temperature; 0 after eos. Where there are fewer hypotheses than asked for, the last have length 0 and a score
    of -inf.
    """

    tokens: jax.Array
    lengths: jax.Array
    scores: jax.Array
    log_probs: jax.Array


def normalise(total, lengths, options: Options):
    """Returns summed log-probabilities divided by the length penalty of `lengths`, which count eos."""
    penalty = LENGTH_PENALTIES[options.length_penalty]
    return total / penalty(jnp.asarray(lengths, jnp.float32), options.alpha)


def score(logits, tokens, options: Options) -> Hypotheses:
    """Scores given sequences as a search would have: scoring a search's output gives the search's scores.

    Args:
      logits: (..., T, V), the model's, teacher-forced: those at t come from bos and tokens before t.
      tokens: (..., T) int32, ending with eos, padded with pad.
      options: pad and length penalty count.
    """
    given = tokens != options.pad
    losses = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), tokens)
    log_probs = jnp.where(given, -losses, 0.0)
    lengths = given.sum(-1)
    return Hypotheses(tokens, lengths, normalise(log_probs.sum(-1), lengths, options), log_probs)
