"""A fused GPU kernel for attention inside small windows, such as Swin's of 7x7 tokens, by Pallas and Triton.

Each program keeps the attention weights of one window and head on the chip. The kernel reads queries, keys and values
as the projection writes them, and writes their gradients in the same order: nothing is transposed or padded in memory.

Shape suffixes: W windows of all images, N tokens of a window, P the three parts queries, keys and values, H heads,
d features per head, V windows of one image.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from attnjax.nn.kernels import WINDOW_TILE as TILE  # rows and columns of the attention weights on the chip

_MASKED = -1e30
_GROUP = 16  # windows of one program of the backward pass, which adds up their gradients of the bias


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def window_attention(qkv_WNPHd, bias_HNN, mask_VNN, interpret=False):
    """Returns softmax(q k^T / sqrt(d) + bias) v inside each window, (W, N, H, d) in the dtype of qkv.

    Args:
      qkv_WNPHd: half precision. W is a multiple of V, windows of an image one after another.
      bias_HNN: float32.
      mask_VNN: boolean, True = may attend; None: all tokens of a window. Every token may attend to some.
      interpret: run in Python on any device, for tests.
    """
    return _forward(qkv_WNPHd, bias_HNN, mask_VNN, interpret)[0]


def _tile(ref, window, *rest, tokens):
    """Returns rows of a window, zeros beyond its tokens: (TILE, d)."""
    rows = jnp.arange(TILE)[:, None] < tokens
    return plgpu.load(ref.at[(window, pl.ds(0, TILE), *rest, slice(None))], mask=rows, other=0)


def _store(ref, value, window, *rest, tokens):
    rows = jnp.arange(TILE)[:, None] < tokens
    plgpu.store(ref.at[(window, pl.ds(0, TILE), *rest, slice(None))], value.astype(ref.dtype), mask=rows)


def _pairs(tokens):
    at = jnp.arange(TILE)
    return (at[:, None] < tokens) & (at[None, :] < tokens)


def _weights(q, k, window, head, bias_ref, mask_ref, tokens):
    """Returns the attention weights of a window and head, (TILE, TILE) float32, zero for padding."""
    pairs, square = _pairs(tokens), (pl.ds(0, TILE), pl.ds(0, TILE))
    logits = plgpu.dot(q, k.T) * q.shape[-1] ** -0.5
    logits += plgpu.load(bias_ref.at[(head, *square)], mask=pairs, other=0)
    seen = pairs
    if mask_ref is not None:
        allowed = plgpu.load(mask_ref.at[(window % mask_ref.shape[0], *square)], mask=pairs, other=0)
        seen = pairs & (allowed != 0)
    logits = jnp.where(seen, logits, _MASKED)
    weights = jnp.exp(logits - logits.max(-1, keepdims=True))
    weights = weights / weights.sum(-1, keepdims=True)
    return jnp.where(pairs, weights, 0)


def _forward_program(qkv_ref, bias_ref, *refs, tokens):
    *masks, out_ref = refs
    window, head = pl.program_id(0), pl.program_id(1)
    q, k, v = (_tile(qkv_ref, window, part, head, tokens=tokens) for part in map(jnp.int32, range(3)))
    weights = _weights(q, k, window, head, bias_ref, masks[0] if masks else None, tokens)
    _store(out_ref, plgpu.dot(weights.astype(v.dtype), v), window, head, tokens=tokens)


def _backward_program(qkv_ref, bias_ref, *refs, tokens, group):
    *masks, gradient_ref, d_qkv_ref, d_bias_ref = refs
    first, head = pl.program_id(0) * group, pl.program_id(1)

    def add(i, d_bias):
        window = first + i
        q, k, v = (_tile(qkv_ref, window, part, head, tokens=tokens) for part in map(jnp.int32, range(3)))
        gradient = _tile(gradient_ref, window, head, tokens=tokens)
        weights = _weights(q, k, window, head, bias_ref, masks[0] if masks else None, tokens)
        d_v = plgpu.dot(weights.astype(v.dtype).T, gradient)
        d_weights = plgpu.dot(gradient, v.T)
        d_logits = weights * (d_weights - (weights * d_weights).sum(-1, keepdims=True))
        scaled = (d_logits * q.shape[-1] ** -0.5).astype(q.dtype)
        for part, d in enumerate((plgpu.dot(scaled, k), plgpu.dot(scaled.T, q), d_v)):
            _store(d_qkv_ref, d, window, jnp.int32(part), head, tokens=tokens)
        return d_bias + d_logits

    d_bias_ref[pl.program_id(0), head] = jax.lax.fori_loop(0, group, add, jnp.zeros((TILE, TILE), jnp.float32))


def _call(program, inputs, out_shape, grid, interpret):
    return pl.pallas_call(
        program,
        grid=grid,
        out_shape=out_shape,
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=1),
        interpret=interpret,
        name="window_attention",
    )(*(x for x in inputs if x is not None))


def _forward(qkv_WNPHd, bias_HNN, mask_VNN, interpret):
    W, N, _, H, d = qkv_WNPHd.shape
    mask_VNN = None if mask_VNN is None else mask_VNN.astype(jnp.int8)
    inputs = qkv_WNPHd, bias_HNN, mask_VNN
    shape = jax.ShapeDtypeStruct((W, N, H, d), qkv_WNPHd.dtype)
    out_WNHd = _call(functools.partial(_forward_program, tokens=N), inputs, shape, (W, H), interpret)
    return out_WNHd, inputs


def _backward(interpret, inputs, gradient_WNHd):
    qkv_WNPHd, *_ = inputs
    W, N, _, H, _ = qkv_WNPHd.shape
    group = math.gcd(W, _GROUP)
    shapes = (
        jax.ShapeDtypeStruct(qkv_WNPHd.shape, qkv_WNPHd.dtype),
        jax.ShapeDtypeStruct((W // group, H, TILE, TILE), jnp.float32),
    )
    program = functools.partial(_backward_program, tokens=N, group=group)
    d_qkv, d_bias = _call(program, (*inputs, gradient_WNHd), shapes, (W // group, H), interpret)
    return d_qkv, d_bias.sum(0)[:, :N, :N], None


window_attention.defvjp(_forward, _backward)
