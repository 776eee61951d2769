"""Attention masks: boolean, True = may attend, broadcastable to (B, heads, Q, K). Combine them with `&`."""

import jax.numpy as jnp

PAD = 0


def padding_mask(tokens_BK):
    """Returns (B, 1, 1, K): True where the key is a token, False where it is padding."""
    return (tokens_BK != PAD)[:, None, None, :]


def causal_mask(length: int):
    """Returns (1, 1, T, T): a query sees itself and the tokens before it (Vaswani et al. 2017, section 3.2.3)."""
    return jnp.tril(jnp.ones((length, length), bool))[None, None]


def segment_mask(queries_BQ, keys_BK):
    """Returns (B, 1, Q, K): True within a segment of a packed row; no query sees segment 0, which is padding."""
    same = queries_BQ[:, None, :, None] == keys_BK[:, None, None, :]
    return same & (keys_BK != PAD)[:, None, None, :]
