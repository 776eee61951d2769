"""Attention masks: which keys each query may attend to. Combine them with `&`."""

from typing import Any

import flax
import jax
import jax.numpy as jnp

PAD = 0


@flax.struct.dataclass
class Mask:
    """A query may attend to the keys that all fields allow.

    Padding and causality have their own fields, because fused attention kernels take them as numbers, not as arrays.

    allowed: boolean, broadcastable to (B, heads, Q, K), True = may attend; None allows all.
    lengths: (B,) int32, the keys of each example; later ones are padding. None: there is no padding.
    causal: a query sees itself and the tokens before it.
    """

    allowed: jax.Array | None = None
    lengths: jax.Array | None = None
    causal: bool = flax.struct.field(pytree_node=False, default=False)

    def __and__(self, other: "Mask") -> "Mask":
        return Mask(
            allowed=_both(jnp.logical_and, self.allowed, other.allowed),
            lengths=_both(jnp.minimum, self.lengths, other.lengths),
            causal=self.causal or other.causal,
        )

    def array(self, queries: int, keys: int) -> jax.Array | None:
        """Returns the mask as one boolean array, broadcastable to (B, heads, Q, K); None if it allows all."""
        array = self.allowed
        if self.lengths is not None:
            array = _both(jnp.logical_and, array, (jnp.arange(keys) < self.lengths[:, None])[:, None, None])
        if self.causal:
            array = _both(jnp.logical_and, array, jnp.tril(jnp.ones((queries, keys), bool))[None, None])
        return array


def _both(combine: Any, a: Any, b: Any) -> Any:
    if a is None or b is None:
        return b if a is None else a
    return combine(a, b)


def padding_mask(tokens_BK) -> Mask:
    """Returns the mask that hides padding, which comes after the tokens of each row."""
    return Mask(lengths=(tokens_BK != PAD).sum(-1, dtype=jnp.int32))


def causal_mask() -> Mask:
    """Returns the mask of a decoder: a query sees itself and the tokens before it (Vaswani et al. 2017, 3.2.3)."""
    return Mask(causal=True)


def segment_mask(queries_BQ, keys_BK) -> Mask:
    """Returns the mask of packed rows: a query sees the keys of its segment; none sees segment 0, which is padding."""
    same = queries_BQ[:, None, :, None] == keys_BK[:, None, None, :]
    return Mask(allowed=same & (keys_BK != PAD)[:, None, None, :])
