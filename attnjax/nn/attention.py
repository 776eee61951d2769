"""Multi-head attention; the one place that picks a kernel and a memory layout per backend.

Shape suffixes: B batch, Q query positions, K key and value positions, H heads, d features per head, D model width.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from attnjax.errors import UserError
from attnjax.nn.linear import Linear, linear

KERNELS = ("auto", "head_major", "xla", "cudnn")


def choose_kernel(backend: str, dtype, head_dim: int) -> str:
    """Returns the fastest attention kernel for a backend ("cpu", "gpu", "tpu"), dtype and head dimension.

    CPU: explicit products on head-major (B, H, N, d) arrays, where both are plain batched matrix products; measured
    against the alternatives by `experiments/benchmark.py layouts`. GPU in half precision: cuDNN's fused kernel, on
    token-major (B, N, H, d). Elsewhere: XLA's, token-major.
    """
    if backend == "cpu":
        return "head_major"
    fused = backend == "gpu" and jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16) and head_dim % 8 == 0
    return "cudnn" if fused and head_dim <= 128 else "xla"


def attention_weights(q_BHQd, k_BHKd, *, mask=None, bias=None):
    """Returns softmax(q k^T / sqrt(d) + bias) over keys, (B, H, Q, K) float32 (Vaswani et al. 2017, section 3.2.1).

    Args:
      q_BHQd, k_BHKd: head-major queries and keys, any float dtype.
      mask: boolean, broadcastable to (B, H, Q, K); True = may attend. A query that may attend to nothing gets weights
        of zero, with finite gradients.
      bias: added to the scaled logits, broadcastable to (B, H, Q, K).
    """
    logits = (q_BHQd * q_BHQd.shape[-1] ** -0.5) @ k_BHKd.swapaxes(-1, -2)
    logits = logits.astype(jnp.float32)
    if bias is not None:
        logits = logits + bias.astype(jnp.float32)
    if mask is None:
        return jax.nn.softmax(logits)
    weights = jax.nn.softmax(jnp.where(mask, logits, jnp.finfo(jnp.float32).min))
    return jnp.where(mask, weights, 0.0)


def fused_attention(q_BQHd, k_BKHd, v_BKHd, *, mask=None, bias=None, kernel: str):
    """Returns the attention output (B, Q, H, d) by `jax.nn.dot_product_attention`; mask and bias as above."""
    y_BQHd = jax.nn.dot_product_attention(q_BQHd, k_BKHd, v_BKHd, bias=bias, mask=mask, implementation=kernel)
    if mask is None:
        return y_BQHd
    attends_BHQ = jnp.broadcast_to(mask.any(-1), (y_BQHd.shape[0], y_BQHd.shape[2], y_BQHd.shape[1]))
    return jnp.where(attends_BHQ.swapaxes(1, 2)[..., None], y_BQHd, 0)


class MultiHeadAttention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017, section 3.2.2): self-attention, or cross-attention when given `x_kv`.

    Call with x_q (B, Q, D), optionally x_kv (B, K, D'), mask and bias broadcastable to (B, H, Q, K), mask True = may
    attend; returns (B, Q, out_features). With the "intermediates" collection mutable, the weights (B, H, Q, K) are
    sown as "attention" (before dropout). Active dropout needs the rng "dropout".
    """

    num_heads: int
    qkv_features: int | None = None  # all heads together; the query's width
    out_features: int | None = None  # the query's width
    dropout: float = 0.0  # on the weights, drawn for each of them
    use_bias: bool = True
    kernel: str = "auto"
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x_q, x_kv=None, *, mask=None, bias=None, train: bool = False):
        width = self.qkv_features or x_q.shape[-1]
        if width % self.num_heads:
            raise UserError(f"attention width {width} is not divisible by {self.num_heads} heads")
        if self.kernel not in KERNELS:
            raise UserError(f"unknown attention kernel '{self.kernel}'. Known: {', '.join(KERNELS)}")
        head_dim = width // self.num_heads
        if x_kv is None:
            q_BQHd, k_BKHd, v_BKHd = self._project(x_q, ("query", "key", "value"), head_dim)
        else:
            (q_BQHd,) = self._project(x_q, ("query",), head_dim)
            k_BKHd, v_BKHd = self._project(x_kv, ("key", "value"), head_dim)

        dropping = train and self.dropout > 0
        wants_weights = dropping or self.is_mutable_collection("intermediates")
        kernel = choose_kernel(jax.default_backend(), self.dtype, head_dim) if self.kernel == "auto" else self.kernel
        if kernel == "head_major" or wants_weights:
            q_BHQd, k_BHKd, v_BHKd = (x.swapaxes(1, 2) for x in (q_BQHd, k_BKHd, v_BKHd))
            weights_BHQK = attention_weights(q_BHQd, k_BHKd, mask=mask, bias=bias)
            self.sow("intermediates", "attention", weights_BHQK)
            weights_BHQK = nn.Dropout(self.dropout)(weights_BHQK, deterministic=not dropping)
            y_BQHd = (weights_BHQK.astype(v_BHKd.dtype) @ v_BHKd).swapaxes(1, 2)
        else:
            y_BQHd = fused_attention(q_BQHd, k_BKHd, v_BKHd, mask=mask, bias=bias, kernel=kernel)
        out_features = self.out_features or x_q.shape[-1]
        return Linear(out_features, in_axes=2, use_bias=self.use_bias, dtype=self.dtype, name="out")(y_BQHd)

    def _project(self, x, names, head_dim):
        """Returns a projection (B, N, H, d) of x per name, all by one product, which reads x once."""
        layers = [Linear((self.num_heads, head_dim), use_bias=self.use_bias, name=name) for name in names]
        kernels, biases = zip(*(layer.weights(x.shape[-1:]) for layer in layers), strict=True)
        kernel_DPHd = jnp.stack(kernels, axis=1)
        bias_PHd = jnp.stack(biases) if self.use_bias else None
        y_BNPHd = linear(x, kernel_DPHd, bias_PHd, dtype=self.dtype)
        return [y_BNPHd[:, :, i] for i in range(len(names))]
