"""Beam search; with early stopping by fairseq's rules (`fairseq/sequence_generator.py`), whose cases it reproduces.

Shapes: B batch, K beams, L maximum length, V vocabulary.
"""

from typing import Any

import flax
import jax
import jax.numpy as jnp

from attnjax.decoding.options import Options
from attnjax.decoding.score import Hypotheses, normalise
from attnjax.decoding.steps import batch_size, expand, forced_tokens, next_log_probs


def beam_search(step, cache, options: Options, *, max_lengths=None, prefix=None) -> Hypotheses:
    """Returns the best hypotheses found, all different, best first: Hypotheses (B, n_best).

    Each step takes the 2K likeliest continuations of the K open hypotheses, by summed log-probability. An eos among the
    first K of them finishes a hypothesis (one further down is dropped); the first K that are not eos stay open. The K
    best finished ones, by length-normalised score, are kept. An example is done when no open hypothesis can end better
    than `n_best` of them, even if all of its further tokens were certain, or none is open. A prefix with eos in it
    gives one hypothesis.

    With `options.early_stopping` it is done when K have finished, and what would finish later is not waited for: of a
    model that is sure of itself, the K are soon full of unlikely ends, and its likeliest output may be lost.

    Args:
      step, cache, max_lengths, prefix: as for `greedy`.
    """
    batch = batch_size(cache)
    forced = forced_tokens(batch, options, max_lengths, prefix)

    def advance(state):
        beams, position = state.open, state.position
        log_probs, cache = next_log_probs(step, state.cache, beams.tokens, position, forced, options)
        parents, candidates = _continue(beams, log_probs, position)
        ends = candidates.tokens[:, :, position] == options.eos  # (B, 2K)
        finished = _finish(state.finished, candidates, ends, position + 1, options)
        totals, stay = jax.lax.top_k(jnp.where(ends, -jnp.inf, candidates.totals), options.beam_size)
        beams = _take(candidates, stay).replace(totals=totals)
        return _State(position + 1, _reorder(cache, _take(parents, stay)), beams, finished)

    state = _start(expand(cache, options.beam_size), batch, options)
    finished = jax.lax.while_loop(lambda state: _searching(state, options).any(), advance, state).finished
    return jax.tree.map(lambda x: x[:, : options.n_best], finished)


@flax.struct.dataclass
class _Beams:
    tokens: jax.Array  # (B, K, L)
    log_probs: jax.Array  # (B, K, L)
    totals: jax.Array  # (B, K), summed log-probabilities; -inf for a beam that is not there


@flax.struct.dataclass
class _State:
    position: jax.Array  # ()
    cache: Any
    open: _Beams
    finished: Hypotheses  # (B, K), best first


def _start(cache, batch, options):
    shape = (batch, options.beam_size, options.max_length)
    tokens, log_probs = jnp.full(shape, options.pad, jnp.int32), jnp.zeros(shape)
    nothing = jnp.full(shape[:2], -jnp.inf)
    return _State(
        position=jnp.zeros((), jnp.int32),
        cache=cache,
        open=_Beams(tokens, log_probs, nothing.at[:, 0].set(0.0)),  # all beams would start alike: only the first does
        finished=Hypotheses(tokens, jnp.zeros(shape[:2], jnp.int32), nothing, log_probs),
    )


def _continue(beams, log_probs, position):
    """Returns the 2K likeliest continuations, likeliest first: their parents (B, 2K), and themselves."""
    batch, k, vocabulary_size = log_probs.shape
    totals = (beams.totals[..., None] + log_probs).reshape(batch, -1)
    totals, best = jax.lax.top_k(totals, 2 * k)
    parents, token = best // vocabulary_size, best % vocabulary_size
    log_prob = jnp.take_along_axis(log_probs.reshape(batch, -1), best, axis=1)
    tokens = _take(beams.tokens, parents).at[:, :, position].set(token)
    log_probs = _take(beams.log_probs, parents).at[:, :, position].set(log_prob)
    return parents, _Beams(tokens, log_probs, totals)


def _searching(state, options):
    """Returns which examples go on, (B,)."""
    ends = jnp.array([state.position + 1, options.max_length])  # the penalty grows with the length, or falls
    attainable = normalise(state.open.totals.max(-1, keepdims=True), ends, options).max(-1)
    scores = state.finished.scores
    better = jnp.isneginf(scores[:, -1]) if options.early_stopping else attainable > scores[:, options.n_best - 1]
    return jnp.isfinite(attainable) & better


def _finish(finished, candidates, ends, length, options):
    """Returns the best K of the finished ones and the candidates that end, among the first K; best first."""
    batch, k = finished.lengths.shape
    # Masked, not sliced to K: XLA runs a top-k whose result is sliced again as a full sort, 100 times slower on CPU.
    ends &= jnp.isfinite(candidates.totals) & (jnp.arange(2 * k) < k)
    if options.early_stopping:  # only while there is room
        ends &= (finished.lengths > 0).sum(1, keepdims=True) + jnp.cumsum(ends, axis=1) <= k
    new = Hypotheses(
        tokens=candidates.tokens,
        lengths=jnp.full((batch, 2 * k), length),
        scores=jnp.where(ends, normalise(candidates.totals, length, options), -jnp.inf),
        log_probs=candidates.log_probs,
    )
    every = jax.tree.map(lambda *both: jnp.concatenate(both, axis=1), finished, new)
    _, best = jax.lax.top_k(every.scores, k)  # of equals the first: empty places, if any
    return _take(every, best)


def _take(tree, index):
    """Returns arrays (B, n, ...) taken from (B, m, ...) by index (B, n)."""
    rows = jnp.arange(index.shape[0])[:, None]
    return jax.tree.map(lambda x: x[rows, index], tree)


def _reorder(cache, parents):
    """Returns the cache (B * K, ...) with each hypothesis' row taken from its parent's, (B, K)."""
    batch, k = parents.shape
    rows = (jnp.arange(batch)[:, None] * k + parents).reshape(-1)
    return jax.tree.map(lambda x: jnp.take(x, rows, axis=0, mode="clip"), cache)
