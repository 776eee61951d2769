"""The decoding step that all searches share: run the model, then forbid the tokens that the options rule out.

Shapes: B batch, K hypotheses per example, L maximum length, V vocabulary.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from attnjax.decoding.options import Options

PyTree = Any
Ints = ArrayLike | None
Step = Callable[[PyTree, jax.Array, jax.Array], tuple[jax.Array, PyTree]]  # see the package's docstring


def expand(tree: PyTree, times: int) -> PyTree:
    """Repeats each row of a pytree of arrays, (B, ...) -> (B * times, ...): rows 0 0 1 1 if `times` is 2."""
    return jax.tree.map(lambda x: jnp.repeat(x, times, axis=0), tree)


def batch_size(cache: PyTree) -> int:
    """Returns the size of the leading axis that all leaves of the cache share; ValueError if they do not."""
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(cache)]
    if len({shape[:1] for shape in shapes}) != 1 or not shapes[0]:
        raise ValueError(
            f"all leaves of a decoding cache need the batch as their leading axis; the shapes are {shapes}"
        )
    return shapes[0][0]


class Forced(NamedTuple):
    """Tokens that an output must have: (B, L) int32, pad where there is none, and the maximum lengths (B,) int32."""

    tokens: jax.Array
    limits: jax.Array


def forced_tokens(batch: int, options: Options, max_lengths: Ints, prefix: Ints) -> Forced:
    """Returns the token forced at each position.

    Args:
      max_lengths: (B,) int or None, at most options.max_length: eos is forced there, even against the prefix.
      prefix: (B, P) int or None, the output's first tokens, without bos, padded with pad.
    """
    forced = jnp.full((batch, options.max_length), options.pad, jnp.int32)
    if prefix is not None:
        prefix = jnp.asarray(prefix, jnp.int32)[:, : options.max_length]
        forced = forced.at[:, : prefix.shape[1]].set(prefix)
    limits = options.max_length if max_lengths is None else jnp.clip(max_lengths, 1, options.max_length)
    limits = jnp.broadcast_to(jnp.asarray(limits, jnp.int32), (batch,))
    return Forced(forced.at[jnp.arange(batch), limits - 1].set(options.eos), limits)


def next_log_probs(
    step: Step, cache: PyTree, tokens: jax.Array, position: jax.Array, forced: Forced, options: Options
) -> tuple[jax.Array, PyTree]:
    """Runs the decoder once; returns the next token's log-probabilities (B, K, V), -inf if forbidden, and the cache.

    Where the rules leave no token at all, the output ends: eos is allowed, even before the minimum length.

    Args:
      tokens: (B, K, L) int32, the output so far: valid before `position`.
      position: () int32.
      forced: from `forced_tokens`.
    """
    token = jnp.where(position == 0, options.bos, tokens[:, :, position - 1])
    logits, cache = step(cache, token.reshape(-1), position)
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32)).reshape(*token.shape, -1)
    must = forced.tokens[:, position, None, None]  # (B, 1, 1)
    at_limit = (position == forced.limits - 1)[:, None, None]
    vocabulary = jnp.arange(log_probs.shape[-1])
    forbidden = vocabulary == options.pad
    if options.bos != options.eos:
        forbidden |= vocabulary == options.bos
    forbidden |= (vocabulary == options.eos) & (position < options.min_length - 1)
    if 0 < options.no_repeat_ngram < options.max_length:
        forbidden |= _repeats(tokens, position, options.no_repeat_ngram, log_probs.shape[-1])
    forbidden &= ~(forbidden.all(-1, keepdims=True) & (vocabulary == options.eos))
    # A forced token overrides all other rules; its log-probability is unchanged, but for the option.
    forbidden = jnp.where(must == options.pad, forbidden, vocabulary != must)
    if not options.score_forced_eos:
        log_probs = jnp.where(at_limit & ~jnp.isnan(log_probs), 0.0, log_probs)
    return jnp.where(forbidden, -jnp.inf, log_probs), cache


def _repeats(tokens, position, n, vocabulary_size):
    """Returns which next tokens would repeat an n-gram of the tokens before `position`, (B, K, V) bool."""
    batch, beams, length = tokens.shape
    starts = length - n + 1  # number of n-grams tokens[i : i + n]
    last = jax.lax.dynamic_slice_in_dim(tokens, position - (n - 1), n - 1, axis=2)  # (B, K, n - 1)
    complete = jnp.arange(starts) + n <= position  # none while position < n - 1, when `last` is out of range
    same = jnp.broadcast_to(complete, (batch, beams, starts))
    for i in range(n - 1):
        same &= tokens[:, :, i : i + starts] == last[:, :, i, None]
    repeated = jnp.where(same, tokens[:, :, n - 1 :], vocabulary_size)  # (B, K, starts), out of range if none
    b, k = jnp.ogrid[:batch, :beams]
    found = jnp.zeros((batch, beams, vocabulary_size), bool)
    return found.at[b[..., None], k[..., None], repeated].set(True, mode="drop")
