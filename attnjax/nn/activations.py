"""Activation functions by name.

On GPUs and TPUs, GELU saves its input alone for the backward pass, and is computed in float32. Automatic
differentiation also saves the tanh or erf, which in a Transformer is an array of the size of the MLP's hidden layer in
every block. CPUs use it: they take longer to compute a tanh or erf again than to read it.
"""

import math
from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from attnjax.errors import check_choice
from attnjax.nn.kernels import backend

Function = Callable[[jax.Array], jax.Array]


def _saving_input(function: Function, derivative: Function) -> Function:
    """Returns the elementwise `function`, whose backward pass computes `derivative` from its input (not on CPUs)."""

    def in_float32(compute, x):
        return compute(x.astype(jnp.promote_types(x.dtype, jnp.float32)))

    @jax.custom_vjp
    def call(x):
        return in_float32(function, x).astype(x.dtype)

    def backward(x, gradient):
        return ((in_float32(derivative, x) * gradient).astype(x.dtype),)

    call.defvjp(lambda x: (call(x), x), backward)
    return lambda x: function(x) if backend() == "cpu" else call(x)


def _gelu_derivative(x):
    return 0.5 + 0.5 * jax.lax.erf(x * math.sqrt(0.5)) + x * jnp.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)


def _gelu_tanh_derivative(x):
    # gelu_tanh(x) = x sigmoid(u), as 0.5 (1 + tanh(u / 2)) = sigmoid(u)
    u = 2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    slope = 2 * math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x**2)
    s = jax.nn.sigmoid(u)
    return s + x * s * (1 - s) * slope


ACTIVATIONS: dict[str, Function] = {
    "relu": nn.relu,
    "swish": nn.swish,
    "tanh": nn.tanh,
    "gelu": _saving_input(partial(nn.gelu, approximate=False), _gelu_derivative),  # erf: timm, Hugging Face, Swin
    "gelu_tanh": _saving_input(partial(nn.gelu, approximate=True), _gelu_tanh_derivative),  # Google's ViT
}


def activation(name: str) -> Function:
    """Returns the activation function with this name; UserError lists the known ones."""
    check_choice("activation", name, ACTIVATIONS)
    return ACTIVATIONS[name]
