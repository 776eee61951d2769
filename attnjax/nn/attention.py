"""Multi-head attention; `attnjax/nn/kernels.py` chooses how it is computed.

Shape suffixes: B batch, Q query positions, K key and value positions, H heads, d features per head, D model width.
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from attnjax.errors import UserError, check_choice
from attnjax.nn.dropout import Dropout
from attnjax.nn.kernels import KERNELS, attention_weights, choose_kernel, fused_attention, record
from attnjax.nn.linear import Linear, linear
from attnjax.nn.masks import Mask
from attnjax.nn.positions import RelativePositions
from attnjax.nn.windows import Pair

Cache = dict[str, jax.Array]  # "key" and "value", (B, H, K, d)


class MultiHeadAttention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017, section 3.2.2): self-attention, or cross-attention if `x_kv` is given.

    Call with x_q (B, Q, D), optionally x_kv (B, K, D'), mask and bias; returns (B, Q, features). A mask is a `Mask` or
    a boolean array broadcastable to (B, H, Q, K), True = may attend; so is a bias. With the "intermediates" collection
    mutable, the weights (B, H, Q, K) are sown as "attention" (before dropout). Active dropout needs the rng "dropout".

    Self-attention within windows takes x_q (B, windows, N, D) and a mask broadcastable to (B, windows, H, N, N).

    Queries and keys have `key_size` features per head (the paper's d_k, varied in table 3 (B)), values an equal share
    of the width (d_v). Fused kernels need the two to be equal; with another `key_size` the products are explicit.

    With `relative_grid` (h, w) the last h * w tokens are a grid, and each pair of them has a learned bias per head for
    its offset along both axes, as in Swin (Liu et al. 2021, section 3.2). Tokens before the grid, such as a class
    token, have no bias. This is for self-attention without a cache.

    For incremental decoding a KV cache holds keys and values (B, H, K, d): see `start_cache`, `keys_and_values`, `step`
    and `look_up`.
    """

    num_heads: int
    features: int  # of the output
    qkv_features: int | None = None  # of all heads together; default: features
    key_size: int = 0  # features per head of queries and keys; 0: as many as the values have
    dropout: float = 0.0  # on the attention weights
    relative_grid: Pair | None = None
    use_bias: bool = True
    kernel: str = "auto"
    kernel_init: Callable | None = None  # of all four projections; default: Linear's
    dtype: str = "float32"

    def setup(self):
        width = self.qkv_features or self.features
        if width % self.num_heads:
            raise UserError(f"attention width {width} is not divisible by {self.num_heads} heads")
        check_choice("attention kernel", self.kernel, KERNELS)
        self.head_dim = width // self.num_heads
        if self.key_size < 0:
            raise UserError(
                f"attention needs a key_size of at least 1, or 0 for the size of the values, got {self.key_size}"
            )
        self.key_dim = self.key_size or self.head_dim
        self.uneven = self.key_dim != self.head_dim
        if self.uneven and self.kernel not in ("auto", "head_major"):
            raise UserError(
                f"attention kernel '{self.kernel}' needs keys as large as values, {self.head_dim} features per head, "
                f"not key_size={self.key_size}; use auto or head_major"
            )
        projection = partial(Linear, use_bias=self.use_bias, kernel_init=self.kernel_init, dtype=self.dtype)
        sizes = self.key_dim, self.key_dim, self.head_dim
        self.query, self.key, self.value = (projection((self.num_heads, size)) for size in sizes)
        self.out = projection(self.features, in_axes=2)
        if self.relative_grid is not None:
            self.relative_positions = RelativePositions(self.num_heads)
        self.drop = Dropout(self.dropout)

    def __call__(self, x_q, x_kv=None, *, mask=None, bias=None, train: bool = False):
        if self.relative_grid is not None:
            relative = self._relative_bias(x_q.shape[-2])
            bias = relative if bias is None else bias + relative
        mask = mask if isinstance(mask, Mask) else Mask(mask)
        kernel = self._kernel(x_q, mask, bias, train)
        if kernel == "windows":
            return self.out(self._in_windows(x_q, mask.allowed, bias))
        if x_kv is None:
            q_BQHd, k_BKHd, v_BKHd = self._project(x_q, self.query, self.key, self.value)
        else:
            (q_BQHd,) = self._project(x_q, self.query)
            k_BKHd, v_BKHd = self._project(x_kv, self.key, self.value)

        if kernel == "head_major":
            q_BHQd, k_BHKd, v_BHKd = (x.swapaxes(-3, -2) for x in (q_BQHd, k_BKHd, v_BKHd))
            array = mask.array(q_BHQd.shape[-2], k_BHKd.shape[-2])
            weights_BHQK = attention_weights(q_BHQd, k_BHKd, mask=array, bias=bias)
            self.sow("intermediates", "attention", weights_BHQK)
            weights_BHQK = self.drop(weights_BHQK, train=train)
            return self._combine(weights_BHQK, v_BHKd)
        return self.out(fused_attention(q_BQHd, k_BKHd, v_BKHd, mask=mask, bias=bias, kernel=kernel))

    def _kernel(self, x_q, mask, bias, train):
        """Returns the kernel for these inputs, and records it for the log."""
        masked, windows = mask.allowed is not None, x_q.ndim > 3
        kernel, reason = self.kernel, "as configured"
        if kernel == "auto":
            tokens = x_q.shape[-2] if windows else 0
            kernel, reason = choose_kernel(
                self.dtype, self.head_dim, biased=bias is not None, masked=masked, window=tokens
            )
        explicit = [
            (train and self.dropout > 0, "dropout acts on the attention weights"),
            (self.is_mutable_collection("intermediates"), "the attention weights are returned"),
            (self.uneven, "keys and values differ in size"),
            (windows and kernel != "windows", "windows share biases and masks over the batch"),
        ]
        why = [why for needed, why in explicit if needed]
        if why and kernel != "head_major":
            kernel, reason = "head_major", why[0]
        record(kernel, reason)
        return kernel

    def start_cache(self, batch: int, length: int) -> Cache:
        """Returns an empty KV cache for `length` steps of self-attention."""
        sizes = {"key": self.key_dim, "value": self.head_dim}
        return {name: jnp.zeros((batch, self.num_heads, length, d), self.dtype) for name, d in sizes.items()}

    def keys_and_values(self, x_kv) -> Cache:
        """Returns the KV cache of a memory (B, K, D'), which is the same for all steps."""
        key, value = self._project(x_kv, self.key, self.value)
        return {"key": key.swapaxes(1, 2), "value": value.swapaxes(1, 2)}

    def step(self, x, cache: Cache, position) -> tuple[jax.Array, Cache]:
        """Self-attention of one token x (B, 1, D) at `position` () int32 to itself and to the tokens before it."""
        q_BQHd, k_BKHd, v_BKHd = self._project(x, self.query, self.key, self.value)
        new = {"key": k_BKHd.swapaxes(1, 2), "value": v_BKHd.swapaxes(1, 2)}
        cache = {name: jax.lax.dynamic_update_slice_in_dim(cache[name], new[name], position, axis=2) for name in cache}
        seen = jnp.arange(cache["key"].shape[2]) <= position
        return self._attend_cached(q_BQHd, cache, seen), cache

    def look_up(self, x_q, cache: Cache, *, mask: Mask | None = None):
        """Cross-attention from x_q (B, Q, D) to the keys and values of a memory."""
        (q_BQHd,) = self._project(x_q, self.query)
        array = mask.array(q_BQHd.shape[1], cache["key"].shape[2]) if mask else None
        return self._attend_cached(q_BQHd, cache, array)

    def _relative_bias(self, tokens):
        bias = self.relative_positions(self.relative_grid)
        before = tokens - bias.shape[-1]
        return jnp.pad(bias, ((0, 0), (0, 0), (before, 0), (before, 0))) if before else bias

    def _attend_cached(self, q_BQHd, cache, mask):
        return self._combine(attention_weights(q_BQHd.swapaxes(1, 2), cache["key"], mask=mask), cache["value"])

    def _combine(self, weights_BHQK, v_BHKd):
        return self.out((weights_BHQK.astype(v_BHKd.dtype) @ v_BHKd).swapaxes(-3, -2))

    def _in_windows(self, x_BVND, mask_V1NN, bias_1HNN):
        """Returns the attention's output (B, V, N, H, d) inside each of the V windows of an image."""
        from attnjax.nn.window_kernel import window_attention  # Pallas takes a moment, and only GPUs need it

        qkv_BVNPHd = self._project_together(x_BVND, self.query, self.key, self.value)
        mask_VNN = None if mask_V1NN is None else mask_V1NN[:, 0]
        N = x_BVND.shape[-2]
        bias_HNN = jnp.zeros((self.num_heads, N, N)) if bias_1HNN is None else bias_1HNN[0]
        out = window_attention(qkv_BVNPHd.reshape(-1, *qkv_BVNPHd.shape[2:]), bias_HNN, mask_VNN)
        return out.reshape(*x_BVND.shape[:-1], *out.shape[-2:])

    def _project(self, x, *layers):
        """Returns each layer's projection (..., H, d) of x (..., D); layers of one size share a single product."""
        if len({layer.features for layer in layers}) > 1:
            return [layer(x) for layer in layers]
        y_BNPHd = self._project_together(x, *layers)
        return [y_BNPHd[..., i, :, :] for i in range(len(layers))]

    def _project_together(self, x, *layers):
        """Returns the projections (..., P, H, d) of P layers of one size."""
        kernels, biases = zip(*(layer.weights(x.shape[-1:]) for layer in layers), strict=True)
        bias_PHd = jnp.stack(biases) if self.use_bias else None
        gathers = [layer.gather for layer in layers]
        if None in gathers:
            return linear(x, jnp.stack(kernels, axis=1), bias_PHd, dtype=self.dtype)

        def gather(kernels):
            return jnp.stack([gather(kernel) for gather, kernel in zip(gathers, kernels, strict=True)], axis=1)

        return linear(x, kernels, bias_PHd, dtype=self.dtype, gather=gather)
