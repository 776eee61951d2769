"""FLOPs as papers count them, one per multiply-add, from the jaxpr of any image model."""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import numpy as np
from jax.extend import core

from attnjax.models.swin import Swin
from attnjax.nn.norm import LayerNorm


def _of_product(eqn):
    (contracted, _), _ = eqn.params["dimension_numbers"]
    return math.prod(eqn.outvars[0].aval.shape) * math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)


def _of_convolution(eqn):
    kernel = eqn.invars[1].aval.shape
    outputs = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
    return math.prod(eqn.outvars[0].aval.shape) * math.prod(kernel) // outputs


def _of_fused_attention(products):
    def count(eqn):
        (batch, queries, heads, features), keys = eqn.invars[0].aval.shape, eqn.invars[1].aval.shape[1]
        return products * batch * heads * queries * keys * features

    return count


def _of_window_attention(eqn):
    windows, tokens, _, heads, features = eqn.invars[0].aval.shape  # of queries, keys and values together
    return (2 if len(eqn.outvars) == 1 else 4) * windows * heads * tokens**2 * features


_COUNTS = {
    "dot_general": _of_product,
    "conv_general_dilated": _of_convolution,
    "pallas_call": _of_window_attention,
    # cuDNN's. What a fused kernel's backward pass computes again does not count.
    "dot_product_attention_fwd_wrapper": _of_fused_attention(2),
    "dot_product_attention_bwd_wrapper": _of_fused_attention(4),
}


def jaxpr_multiply_adds(jaxpr: core.Jaxpr) -> int:
    """Returns the multiply-adds of a jaxpr's matrix products and convolutions; of a loop without a length, one turn."""
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in _COUNTS:
            total += _COUNTS[eqn.primitive.name](eqn)
            continue
        times = eqn.params["length"] if eqn.primitive.name == "scan" else 1
        total += times * sum(map(jaxpr_multiply_adds, core.jaxprs_in_params(eqn.params)))
    return total


def trace(model: nn.Module, image_shape: tuple[int, int, int]) -> core.Jaxpr:
    """Returns the jaxpr of the forward pass of one image (H, W, C); its last input is the image, (1, H, W, C)."""
    image = jax.ShapeDtypeStruct((1, *image_shape), np.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    return jax.make_jaxpr(lambda v, x: model.apply(v, x, train=False))(variables, image).jaxpr


def multiply_adds(model: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """Returns the multiply-adds of matrix products and convolutions for one image (H, W, C), by tracing alone."""
    return jaxpr_multiply_adds(trace(model, image_shape))


def step_multiply_adds(step: Callable, *inputs) -> int:
    """Returns the multiply-adds of matrix products and convolutions in `step(*inputs)`; arrays or ShapeDtypeStructs."""
    return jaxpr_multiply_adds(jax.make_jaxpr(step)(*inputs).jaxpr)


def normalised(model: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """Returns the number of elements that LayerNorms normalise for one image (H, W, C), by tracing alone."""
    sizes = []

    def note(call, args, kwargs, context):
        if isinstance(context.module, LayerNorm) and context.method_name == "__call__":
            sizes.append(math.prod(args[0].shape))
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, *image_shape), np.float32))
    return sum(sizes)


def microsoft_flops(model: Swin, image_shape: tuple[int, int, int]) -> int:
    """Returns what `flops()` of Microsoft's Swin code counts: multiply-adds, and one per element of each LayerNorm.

    It takes the last LayerNorm's input to have 1/2**stages of the patches instead of 1/4**(stages - 1); the paper's
    numbers include this error, so it is reproduced here.
    """
    height, width, _ = image_shape
    patches = -(-height // model.patch_size) * -(-width // model.patch_size)
    stages, channels = len(model.depths), model.width * 2 ** (len(model.depths) - 1)
    overcounted = channels * patches // 2**stages - channels * patches // 4 ** (stages - 1)
    return multiply_adds(model, image_shape) + normalised(model, image_shape) + overcounted
