"""One step of decoding, common to all searches: run the model, then allow only what the options allow.

Shapes: B batch, K hypotheses of an example, L maximum length, V vocabulary.
"""

import jax
import jax.numpy as jnp

from attnjax.decoding.options import Options


def expand(tree, times: int):
    """Returns a pytree of arrays (B, ...) with each row repeated, (B * times, ...): rows 0 0 1 1 for two times."""
    return jax.tree.map(lambda x: jnp.repeat(x, times, axis=0), tree)


def batch_size(cache) -> int:
    """Returns the leading axis that all of the cache's leaves share; ValueError if they do not."""
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(cache)]
    if len({shape[:1] for shape in shapes}) != 1 or not shapes[0]:
        raise ValueError(f"all leaves of a decoding cache need the batch as leading axis; the shapes are {shapes}")
    return shapes[0][0]


def forced_tokens(batch: int, options: Options, max_lengths, prefix):
    """Returns the token that is forced at each position, (B, L) int32; pad where the search is free.

    Args:
      max_lengths: (B,) int, at most options.max_length, or None: where eos is forced, whatever the prefix says.
      prefix: (B, P) int, the output's first tokens without bos, padded with pad, or None.
    """
    forced = jnp.full((batch, options.max_length), options.pad, jnp.int32)
    if prefix is not None:
        prefix = jnp.asarray(prefix, jnp.int32)[:, : options.max_length]
        forced = forced.at[:, : prefix.shape[1]].set(prefix)
    limits = options.max_length if max_lengths is None else jnp.clip(max_lengths, 1, options.max_length)
    return forced.at[jnp.arange(batch), limits - 1].set(options.eos)


def next_log_probs(step, cache, tokens, position, forced, options: Options):
    """Runs the decoder once; returns the next token's log-probabilities (B, K, V), -inf where forbidden, and the cache.

    Args:
      tokens: (B, K, L) int32, of which those before `position` are chosen.
      position: () int32.
      forced: (B, L) int32, from `forced_tokens`.
    """
    token = jnp.where(position == 0, options.bos, tokens[:, :, position - 1])
    logits, cache = step(cache, token.reshape(-1), position)
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32)).reshape(*token.shape, -1)
    return _constrain(log_probs, tokens, position, forced[:, position, None, None], options), cache


def _constrain(log_probs, tokens, position, forced, options):
    """Forbids tokens; a forced one, (B, 1, 1), goes before every other rule and keeps its own log-probability."""
    vocabulary = jnp.arange(log_probs.shape[-1])
    forbidden = vocabulary == options.pad
    if options.bos != options.eos:
        forbidden |= vocabulary == options.bos
    forbidden |= (vocabulary == options.eos) & (position < options.min_length - 1)
    if 0 < options.no_repeat_ngram < options.max_length:
        forbidden |= _repeats(tokens, position, options.no_repeat_ngram, log_probs.shape[-1])
    forbidden = jnp.where(forced == options.pad, forbidden, vocabulary != forced)
    return jnp.where(forbidden, -jnp.inf, log_probs)


def _repeats(tokens, position, n, vocabulary_size):
    """Returns which next tokens would complete an n-gram that the tokens before `position` hold, (B, K, V) bool."""
    batch, beams, length = tokens.shape
    starts = length - n + 1  # of n-grams: tokens[i : i + n]
    last = jax.lax.dynamic_slice_in_dim(tokens, position - (n - 1), n - 1, axis=2)  # (B, K, n - 1)
    complete = jnp.arange(starts) + n <= position  # none while position < n - 1, when `last` is out of range
    same = jnp.broadcast_to(complete, (batch, beams, starts))
    for i in range(n - 1):
        same &= tokens[:, :, i : i + starts] == last[:, :, i, None]
    repeated = jnp.where(same, tokens[:, :, n - 1 :], vocabulary_size)  # (B, K, starts), out of range for none
    b, k = jnp.ogrid[:batch, :beams]
    found = jnp.zeros((batch, beams, vocabulary_size), bool)
    return found.at[b[..., None], k[..., None], repeated].set(True, mode="drop")
