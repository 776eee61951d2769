"""Greedy search and sampling: independent hypotheses, one token at a time.

Shapes: B batch, K samples per example, L maximum length, V vocabulary.
"""

import flax
import jax
import jax.numpy as jnp

from attnjax.decoding.options import Options, SamplingOptions
from attnjax.decoding.score import Hypotheses, normalise
from attnjax.decoding.steps import Ints, PyTree, Step, batch_size, expand, forced_tokens, next_log_probs
from attnjax.errors import UserError


def greedy(step: Step, cache: PyTree, options: Options, *, max_lengths: Ints = None, prefix: Ints = None) -> Hypotheses:
    """Takes the most probable token at each step; returns Hypotheses (B, 1), as beam search with one beam would.

    UserError if options.beam_size is not 1.

    Args:
      step, cache: the decoder, see the package's docstring; the leading axis of the cache is B.
      max_lengths: (B,) int, the maximum length of each example's output, eos counted; None for options.max_length.
      prefix: (B, P) int, the output's first tokens, without bos, padded with pad. An eos forced by the maximum length
        takes precedence. Its log-probabilities count in the score, as in fairseq; JoeyNMT counts them as 0.
    """
    return _generate(step, cache, options, max_lengths, prefix, lambda log_probs, position: log_probs.argmax(-1))


def sample(
    step: Step,
    cache: PyTree,
    options: Options,
    sampling: SamplingOptions,
    rngs: jax.Array,
    *,
    max_lengths: Ints = None,
    prefix: Ints = None,
) -> Hypotheses:
    """Samples with temperature, top-k and top-p (nucleus); returns Hypotheses (B, num_samples), in the order drawn.

    Scores and log-probabilities are the model's own: at temperature 1, over all tokens. UserError if options.beam_size
    is not 1.

    Args:
      rngs: (B,) keys, one per example (`jax.random.split(key, B)`), so that its samples do not depend on its batch.
      step, cache, max_lengths, prefix: as for `greedy`.
    """
    fold = jax.vmap(jax.random.fold_in, (None, 0))
    rngs = jax.vmap(fold, (0, None))(rngs, jnp.arange(sampling.num_samples))  # (B, K) keys

    def draw(log_probs, position):
        def draw_one(rng, log_probs):
            return _draw(jax.random.fold_in(rng, position), log_probs / sampling.temperature, sampling)

        return jax.vmap(jax.vmap(draw_one))(rngs, log_probs)

    return _generate(step, cache, options, max_lengths, prefix, draw, sampling.num_samples)


def _draw(rng, log_probs, sampling):
    """Draws one token from unnormalised log-probabilities (V,)."""
    top_k, top_p = sampling.top_k, sampling.top_p
    if top_k == 0 and top_p == 1:
        return jax.random.categorical(rng, log_probs)
    log_probs, tokens = jax.lax.top_k(log_probs, min(top_k or log_probs.size, log_probs.size))
    if top_p < 1:
        probs = jax.nn.softmax(log_probs)
        likelier = jnp.cumsum(probs) - probs  # 0 for the most probable token, which is always kept
        log_probs = jnp.where(likelier < top_p, log_probs, -jnp.inf)
    return tokens[jax.random.categorical(rng, log_probs)]


@flax.struct.dataclass
class _State:
    position: jax.Array  # ()
    cache: PyTree
    tokens: jax.Array  # (B, K, L)
    log_probs: jax.Array  # (B, K, L)
    totals: jax.Array  # (B, K), NaN or -inf where the model gave no finite log-probability
    lengths: jax.Array  # (B, K), 0 before eos

    @property
    def open(self):
        return (self.lengths == 0) & jnp.isfinite(self.totals)


def _generate(step, cache, options, max_lengths, prefix, choose, samples=1):
    """Generates K = `samples` hypotheses per example with choose(log_probs (B, K, V), position) -> tokens (B, K)."""
    if options.beam_size != 1:
        raise UserError(f"beam_size is {options.beam_size}; greedy search and sampling have no beam, it must be 1")
    batch = batch_size(cache)
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
        cache=expand(cache, samples),
        tokens=jnp.full(shape, options.pad, jnp.int32),
        log_probs=jnp.zeros(shape),
        totals=jnp.zeros(shape[:2]),
        lengths=jnp.zeros(shape[:2], jnp.int32),
    )
    state = jax.lax.while_loop(lambda state: state.open.any(), advance, state)
    found = jnp.isfinite(state.totals)
    lengths = jnp.where(found, state.lengths, 0)
    return Hypotheses(
        tokens=jnp.where(found[..., None], state.tokens, options.pad),
        lengths=lengths,
        scores=jnp.where(found, normalise(state.totals, jnp.maximum(lengths, 1), options), -jnp.inf),
        log_probs=jnp.where(found[..., None], state.log_probs, 0.0),
    )
