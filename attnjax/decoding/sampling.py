"""Greedy search and sampling: one token at a time for each hypothesis, no looking back.

Shapes: B batch, K samples of an example, L maximum length, V vocabulary.
"""

from typing import Any

import flax
import jax
import jax.numpy as jnp

from attnjax.decoding.options import Options
from attnjax.decoding.score import Hypotheses, normalise
from attnjax.decoding.steps import batch_size, expand, forced_tokens, next_log_probs
from attnjax.errors import UserError


def greedy(step, cache, options: Options, *, max_lengths=None, prefix=None) -> Hypotheses:
    """Takes the most probable token at each step; returns Hypotheses (B, 1). Equal to beam search with one beam.

    Args:
      step, cache: the decoder, as the package's docstring says; the cache's leading axis is the batch.
      max_lengths: (B,) int, the longest output of each example, eos counted, at most options.max_length; None for that.
      prefix: (B, P) int, the output's first tokens, without bos and padded with pad; eos at the maximum length goes
        before. Their log-probabilities count in the score, as in fairseq; JoeyNMT counts 0.
    """
    return _generate(step, cache, options, max_lengths, prefix, lambda log_probs, position: log_probs.argmax(-1))


def sample(
    step,
    cache,
    options: Options,
    rngs,
    *,
    num_samples: int = 1,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    max_lengths=None,
    prefix=None,
) -> Hypotheses:
    """Draws each token from softmax(logits / temperature), cut to the likeliest; returns Hypotheses (B, num_samples).

    Samples are in the order of drawing. Scores are those of the model itself, at temperature 1 and not cut. UserError
    if the temperature is not positive, or top_k or top_p cut everything.

    Args:
      rngs: (B,) keys, one an example (`jax.random.split(key, B)`), so that its samples do not depend on its batch.
      top_k: the number of likeliest tokens to draw from (Fan et al. 2018); 0 for all.
      top_p: draws from the smallest set of likeliest tokens, after top_k, with at least this probability (Holtzman et
        al. 2020, section 3.1); 1 for all.
      step, cache, max_lengths, prefix: as for `greedy`.
    """
    if temperature <= 0:
        raise UserError(f"temperature is {temperature}; it must be above 0 (its limit at 0 is greedy search)")
    if top_k < 0 or not 0 < top_p <= 1:
        raise UserError(f"top_k is {top_k} and top_p {top_p}; top_k must be at least 0, top_p above 0 and at most 1")
    fold = jax.vmap(jax.random.fold_in, (None, 0))
    rngs = jax.vmap(fold, (0, None))(rngs, jnp.arange(num_samples))  # (B, K) keys

    def draw(log_probs, position):
        def draw_one(rng, log_probs):
            return _draw(jax.random.fold_in(rng, position), log_probs / temperature, top_k, top_p)

        return jax.vmap(jax.vmap(draw_one))(rngs, log_probs)

    return _generate(step, expand(cache, num_samples), options, max_lengths, prefix, draw, num_samples)


def _draw(rng, log_probs, top_k, top_p):
    """Draws one token from unnormalised log-probabilities (V,)."""
    if top_k == 0 and top_p == 1:
        return jax.random.categorical(rng, log_probs)
    log_probs, tokens = jax.lax.top_k(log_probs, min(top_k or log_probs.size, log_probs.size))
    if top_p < 1:
        probs = jax.nn.softmax(log_probs)
        likelier = jnp.cumsum(probs) - probs  # 0 for the likeliest, which is always kept
        log_probs = jnp.where(likelier < top_p, log_probs, -jnp.inf)
    return tokens[jax.random.categorical(rng, log_probs)]


@flax.struct.dataclass
class _State:
    position: jax.Array  # ()
    cache: Any
    tokens: jax.Array  # (B, K, L)
    log_probs: jax.Array  # (B, K, L)
    totals: jax.Array  # (B, K), -inf where nothing was allowed
    lengths: jax.Array  # (B, K), 0 before eos

    @property
    def open(self):
        return (self.lengths == 0) & jnp.isfinite(self.totals)


def _generate(step, cache, options, max_lengths, prefix, choose, samples=1):
    """Generates with choose(log_probs (B, K, V), position) -> tokens (B, K); the cache is expanded to B * K."""
    if options.beam_size != 1:
        raise UserError(f"beam_size is {options.beam_size}; greedy search and sampling have no beam, it must be 1")
    batch = batch_size(cache) // samples
    forced = forced_tokens(batch, options, max_lengths, prefix)

    def advance(state):
        log_probs, cache = next_log_probs(step, state.cache, state.tokens, state.position, forced, options)
        token = choose(log_probs, state.position).astype(jnp.int32)
        log_prob = jnp.take_along_axis(log_probs, token[..., None], axis=-1)[..., 0]
        token = jnp.where(state.open, token, options.pad)
        log_prob = jnp.where(state.open, log_prob, 0.0)
        return _State(
            position=state.position + 1,
            cache=cache,
            tokens=state.tokens.at[:, :, state.position].set(token),
            log_probs=state.log_probs.at[:, :, state.position].set(log_prob),
            totals=state.totals + log_prob,
            lengths=jnp.where(token == options.eos, state.position + 1, state.lengths),
        )

    shape = (batch, samples, options.max_length)
    state = _State(
        position=jnp.zeros((), jnp.int32),
        cache=cache,
        tokens=jnp.full(shape, options.pad, jnp.int32),
        log_probs=jnp.zeros(shape),
        totals=jnp.zeros(shape[:2]),
        lengths=jnp.zeros(shape[:2], jnp.int32),
    )
    state = jax.lax.while_loop(lambda state: state.open.any(), advance, state)
    return _finish(state, options)


def _finish(state, options):
    found = jnp.isfinite(state.totals)
    lengths = jnp.where(found, state.lengths, 0)
    return Hypotheses(
        tokens=jnp.where(found[..., None], state.tokens, options.pad),
        lengths=lengths,
        scores=jnp.where(found, normalise(state.totals, jnp.maximum(lengths, 1), options), -jnp.inf),
        log_probs=jnp.where(found[..., None], state.log_probs, 0.0),
    )
