"""Attention kernels, and which one an attention layer uses: what depends on the backend.

"head_major": explicit products on head-major (..., H, N, d) arrays, where both are plain batched matrix products. It is
    the fastest on CPUs, by `experiments/benchmark.py layouts`, and the only one that returns the attention weights.
"xla": `jax.nn.dot_product_attention` as XLA compiles it, on token-major (B, N, H, d) arrays.
"cudnn": cuDNN's fused kernel (flash attention), which never stores the attention weights; half precision, NVIDIA GPUs.
"windows": `nn/window_kernel.py`, the same for the windows of Swin, with biases and masks; half precision, NVIDIA GPUs.

Shape suffixes: B batch, Q query positions, K key and value positions, H heads, d features per head.
"""

import contextlib
import contextvars
from collections import Counter
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

from attnjax.errors import check_choice
from attnjax.nn.masks import Mask

PRECISIONS = ("auto", "float32", "bfloat16")
KERNELS = ("auto", "head_major", "xla", "cudnn")  # that a config can ask for
WINDOW_TILE = 64  # the most tokens of a window that the kernel for windows takes
MULTIPLE = 8  # cuDNN's backward pass refuses odd numbers of tokens, so they are padded to a multiple of this

_backend: contextvars.ContextVar[str | None] = contextvars.ContextVar("backend", default=None)
_partitioned: contextvars.ContextVar[bool] = contextvars.ContextVar("partitioned", default=False)
_chosen: contextvars.ContextVar[Counter | None] = contextvars.ContextVar("chosen", default=None)


def backend() -> str:
    """Returns the backend that is compiled for: "cpu", "gpu" or "tpu"."""
    return _backend.get() or jax.default_backend()


def resolve_precision(name: str) -> str:
    """Returns the dtype of products and activations that a config's `precision` names.

    "auto" is bfloat16 on GPUs and TPUs and float32 on CPUs. UserError for anything but it and these two.
    """
    check_choice("precision", name, PRECISIONS)
    if name != "auto":
        return name
    return "float32" if backend() == "cpu" else "bfloat16"


@contextlib.contextmanager
def compiling_for(name: str) -> Iterator[None]:
    """Chooses kernels for another backend than this machine's while a function is lowered for it."""
    token = _backend.set(name)
    try:
        yield
    finally:
        _backend.reset(token)


@contextlib.contextmanager
def partitioned() -> Iterator[None]:
    """Chooses kernels for a function that the compiler partitions over devices, while it is traced."""
    token = _partitioned.set(True)
    try:
        yield
    finally:
        _partitioned.reset(token)


@contextlib.contextmanager
def recorded() -> Iterator[Counter]:
    """Yields a Counter of (kernel, reason): the attention layers that are traced inside the context."""
    chosen: Counter = Counter()
    token = _chosen.set(chosen)
    try:
        yield chosen
    finally:
        _chosen.reset(token)


def record(kernel: str, reason: str) -> None:
    """Counts an attention layer for `recorded`."""
    if (chosen := _chosen.get()) is not None:
        chosen[kernel, reason] += 1


def row_major(x: jax.Array) -> jax.Array:
    """Returns x, and tells XLA on GPUs to lay it out in memory in the order of its axes.

    The gradient of a table of positions is a sum over the batch. To make it fast XLA would lay out the tokens of all
    blocks with the batch last, and then transpose them before and after each matrix product.
    """
    return with_layout_constraint(x, Layout(tuple(range(x.ndim)))) if backend() == "gpu" else x


def choose_kernel(
    dtype, head_dim: int, *, biased: bool = False, masked: bool = False, window: int = 0
) -> tuple[str, str]:
    """Returns the fastest kernel for these inputs on the `backend`, and the reason.

    biased: there is a bias on the logits. masked: the mask has an array; lengths and causality do not count. window:
    tokens of a window, 0 where the attention is not inside windows.
    """
    name = backend()
    if name == "cpu":
        return "head_major", "fastest on CPUs"
    if name == "tpu":
        return "xla", "fastest on TPUs"
    if jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float16):
        return "xla", f"cuDNN has no kernel for {dtype}"
    if 0 < window <= WINDOW_TILE and head_dim in (16, 32, 64) and not _partitioned.get():
        return "windows", "a small window's attention weights fit on the chip"
    if biased or masked:
        return "xla", f"a {'bias' if biased else 'mask'} is an array of all pairs of tokens"
    if head_dim % 8 or head_dim > 128:
        return "xla", f"cuDNN needs a multiple of 8 features per head, at most 128, not {head_dim}"
    return "cudnn", "fastest on NVIDIA GPUs"


def attention_weights(q_BHQd, k_BHKd, *, mask: jax.Array | None = None, bias=None):
    """Returns softmax(q k^T / sqrt(d) + bias) over keys, (B, H, Q, K) float32 (Vaswani et al. 2017, section 3.2.1).

    Args:
      q_BHQd, k_BHKd: head-major queries and keys, any float dtype; instead of B, any number of leading axes.
      mask: boolean, broadcastable to (B, H, Q, K); True = may attend. A query that may attend to no key gets zero
        weights, with finite gradients.
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


def fused_attention(q_BQHd, k_BKHd, v_BKHd, *, mask: Mask, bias=None, kernel: str):
    """Returns the attention's output (B, Q, H, d) by the kernel "xla" or "cudnn".

    As with `attention_weights`, a query that may attend to no key gets zeros.
    """
    array = mask.array(q_BQHd.shape[1], k_BKHd.shape[1])
    if kernel == "cudnn":
        y_BQHd = _cudnn(q_BQHd, k_BKHd, v_BKHd, mask, bias)
    else:
        y_BQHd = jax.nn.dot_product_attention(q_BQHd, k_BKHd, v_BKHd, bias=bias, mask=array, implementation="xla")
    if array is None:
        return y_BQHd
    sees_BHQ = array.any(-1)
    return jnp.where(sees_BHQ.swapaxes(1, 2)[..., None], y_BQHd, 0)


def _cudnn(q_BQHd, k_BKHd, v_BKHd, mask, bias):
    """Returns cuDNN's attention of tokens padded to MULTIPLE, which hides padding by the numbers of tokens."""
    batch, queries = q_BQHd.shape[:2]
    keys = k_BKHd.shape[1]

    def pad(x, *axes):
        return jnp.pad(x, [(0, -x.shape[axis] % MULTIPLE if axis in axes else 0) for axis in range(x.ndim)])

    lengths = {}
    if mask.lengths is not None or queries % MULTIPLE or keys % MULTIPLE:
        known = jnp.full(batch, keys, jnp.int32) if mask.lengths is None else jnp.maximum(mask.lengths, 1)
        lengths = {"query_seq_lengths": jnp.full(batch, queries, jnp.int32), "key_value_seq_lengths": known}
    arrays = {}
    if bias is not None:  # cuDNN does not broadcast over tokens
        arrays["bias"] = pad(jnp.broadcast_to(bias, (*bias.shape[:2], queries, keys)).astype(q_BQHd.dtype), 2, 3)
    if mask.allowed is not None:
        arrays["mask"] = pad(jnp.broadcast_to(mask.allowed, (*mask.allowed.shape[:2], queries, keys)), 2, 3)
    y_BQHd = jax.nn.dot_product_attention(
        pad(q_BQHd, 1),
        pad(k_BKHd, 1),
        pad(v_BKHd, 1),
        **arrays,
        **lengths,
        is_causal=mask.causal,
        implementation="cudnn",
    )
    return y_BQHd[:, :queries]
