"""Beam search. With early stopping it follows `fairseq/sequence_generator.py` and reproduces its test cases.

Shapes: B batch, K beams, L maximum length, V vocabulary.
"""

import flax
import jax
import jax.numpy as jnp

from attnjax.decoding.options import Options
from attnjax.decoding.score import Hypotheses, normalise
from attnjax.decoding.steps import Ints, PyTree, Step, batch_size, expand, forced_tokens, next_log_probs


def beam_search(
    step: Step, cache: PyTree, options: Options, *, max_lengths: Ints = None, prefix: Ints = None
) -> Hypotheses:
    """Returns the best distinct hypotheses found, best first: Hypotheses (B, n_best).

    Each step takes the 2K most probable continuations of the K open hypotheses, by summed log-probability. An eos among
    the first K finishes a hypothesis (an eos ranked lower is dropped); the first K that are not eos stay open. The K
    best finished hypotheses are kept, by length-normalised score. An example is done when no hypothesis is open, or
    none could still beat the best `n_best` finished ones even if all its remaining tokens had probability 1. A prefix
    that contains eos yields one hypothesis.

    With `options.early_stopping` an example is done once K hypotheses have finished. A confident model soon fills these
    K places with improbable short outputs, so its most probable output may be lost. The other arguments are `greedy`'s.
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
    totals: jax.Array  # (B, K), summed log-probabilities; -inf for an empty beam


@flax.struct.dataclass
class _State:
    position: jax.Array  # ()
    cache: PyTree
    open: _Beams
    finished: Hypotheses  # (B, K), best first


def _start(cache, batch, options):
    shape = (batch, options.beam_size, options.max_length)
    tokens, log_probs = jnp.full(shape, options.pad, jnp.int32), jnp.zeros(shape)
    nothing = jnp.full(shape[:2], -jnp.inf)
    return _State(
        position=jnp.zeros((), jnp.int32),
        cache=cache,
        open=_Beams(tokens, log_probs, nothing.at[:, 0].set(0.0)),  # one beam: several would all find the same
        finished=Hypotheses(tokens, jnp.zeros(shape[:2], jnp.int32), nothing, log_probs),
    )


def _continue(beams, log_probs, position):
    """Returns the 2K most probable continuations, most probable first: (their parents (B, 2K), the beams)."""
    batch, k, vocabulary_size = log_probs.shape
    totals = (beams.totals[..., None] + log_probs).reshape(batch, -1)
    totals, best = jax.lax.top_k(totals, 2 * k)
    parents, token = best // vocabulary_size, best % vocabulary_size
    log_prob = jnp.take_along_axis(log_probs.reshape(batch, -1), best, axis=1)
    tokens = _take(beams.tokens, parents).at[:, :, position].set(token)
    log_probs = _take(beams.log_probs, parents).at[:, :, position].set(log_prob)
    return parents, _Beams(tokens, log_probs, totals)


def _searching(state, options):
    """Returns which examples are still searching, (B,) bool."""
    # The penalty is monotonic in the length, so the best score to expect is at one of these.
    ends = jnp.array([state.position + 1, options.max_length])
    attainable = normalise(state.open.totals.max(-1, keepdims=True), ends, options).max(-1)
    scores = state.finished.scores
    better = jnp.isneginf(scores[:, -1]) if options.early_stopping else attainable > scores[:, options.n_best - 1]
    return jnp.isfinite(attainable) & better


def _finish(finished, candidates, ends, length, options):
    """Returns the best K of `finished` and those of the first K candidates that end, best first."""
    batch, k = finished.lengths.shape
    # Masked, not sliced to K: on CPU, XLA replaces a top-k whose result is sliced by a full sort, 100 times slower.
    ends &= jnp.isfinite(candidates.totals) & (jnp.arange(2 * k) < k)
    if options.early_stopping:  # only while fewer than K have finished
        ends &= (finished.lengths > 0).sum(1, keepdims=True) + jnp.cumsum(ends, axis=1) <= k
    new = Hypotheses(
        tokens=candidates.tokens,
        lengths=jnp.full((batch, 2 * k), length),
        scores=jnp.where(ends, normalise(candidates.totals, length, options), -jnp.inf),
        log_probs=candidates.log_probs,
    )
    every = jax.tree.map(lambda *both: jnp.concatenate(both, axis=1), finished, new)
    _, best = jax.lax.top_k(every.scores, k)  # of equal scores the first
    return _take(every, best)


def _take(tree, index):
    """Returns arrays (B, n, ...) taken from (B, m, ...) by index (B, n)."""
    rows = jnp.arange(index.shape[0])[:, None]
    return jax.tree.map(lambda x: x[rows, index], tree)


def _reorder(cache, parents):
    """Returns the cache (B * K, ...) with each hypothesis' row copied from its parent's; parents (B, K)."""
    batch, k = parents.shape
    rows = (jnp.arange(batch)[:, None] * k + parents).reshape(-1)
    return jax.tree.map(lambda x: jnp.take(x, rows, axis=0, mode="clip"), cache)
