"""The linear layer of attention and MLP, and the output layer of language models.

In half precision, what adds up over many rows is added in float32: a parameter is broadcast, or its rows are gathered,
before it is cast. The gradient then sums the rows after their cast to float32.
"""

from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from attnjax.nn.partition import gather_of


def xavier_uniform(in_axes: int) -> Callable:
    """Returns the initializer of Glorot & Bengio (2010) for a kernel whose first `in_axes` axes are contracted."""

    def init(key, shape, dtype):
        axes = tuple(range(len(shape)))
        return nn.initializers.xavier_uniform(in_axis=axes[:in_axes], out_axis=axes[in_axes:])(key, shape, dtype)

    return init


def linear(x, kernel, bias=None, *, in_axes: int = 1, dtype: str = "float32", gather: Callable | None = None):
    """Contracts the last `in_axes` axes of x with the first ones of the kernel: (..., *in) -> (..., *out).

    All leading axes are flattened into one for the product: on a CPU the gradient of an MLP then took 0.8 of the time
    it takes with a separate batch axis (`experiments/benchmark.py layouts`). The kernel's axes stay, as devices may
    share one of them.

    With FSDP, `gather(kernel)` all-gathers the kernel, or makes one of several; the backward pass gathers it again.
    """
    lead = x.ndim - in_axes
    rows = x.reshape(-1, *x.shape[lead:]).astype(dtype)
    if gather is None:
        y = _contract(rows, kernel.astype(dtype), in_axes)
    else:
        y = _contract_gathered(gather, in_axes, rows, jax.tree.map(lambda k: k.astype(dtype), kernel))
    if bias is not None:
        y = y + jnp.broadcast_to(bias, y.shape).astype(y.dtype)
    return y.reshape(*x.shape[:lead], *y.shape[1:])


def _contract(rows, kernel, in_axes):
    inner = tuple(range(in_axes))
    return jax.lax.dot_general(rows, kernel, ((tuple(axis + 1 for axis in inner), inner), ((), ())))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _contract_gathered(gather, in_axes, rows, kernel):
    return _contract(rows, gather(kernel), in_axes)


def _contract_gathered_backward(gather, in_axes, saved, gradient):
    # Behind the barrier the kernel is another array for the compiler, and not gathered before the gradient is there.
    rows, kernel, gradient = jax.lax.optimization_barrier((*saved, gradient))
    whole, scatter = jax.vjp(gather, kernel)
    rows_gradient, whole_gradient = jax.vjp(partial(_contract, in_axes=in_axes), rows, whole)[1](gradient)
    return rows_gradient, *scatter(whole_gradient)


_contract_gathered.defvjp(
    lambda gather, in_axes, rows, kernel: (_contract_gathered(gather, in_axes, rows, kernel), (rows, kernel)),
    _contract_gathered_backward,
)


class Linear(nn.Module):
    """Maps the last `in_axes` axes of x to `features`: (..., *in) -> (..., *features)."""

    features: int | Sequence[int]
    in_axes: int = 1
    use_bias: bool = True
    kernel_init: Callable | None = None  # default: Xavier uniform
    bias_init: Callable = nn.initializers.zeros
    dtype: str = "float32"

    @nn.compact
    def weights(self, in_shape: Sequence[int]):
        """Returns the kernel (*in_shape, *features) and the bias (*features), None without one."""
        out = (self.features,) if isinstance(self.features, int) else tuple(self.features)
        kernel_init = self.kernel_init or xavier_uniform(self.in_axes)
        kernel = self.param("kernel", kernel_init, (*in_shape, *out), "float32")
        return kernel, self.param("bias", self.bias_init, out, "float32") if self.use_bias else None

    def __call__(self, x):
        kernel, bias = self.weights(x.shape[-self.in_axes :])
        return linear(x, kernel, bias, in_axes=self.in_axes, dtype=self.dtype, gather=self.gather)

    @property
    def gather(self) -> Callable | None:
        """How FSDP all-gathers the kernel, None where it is whole."""
        return gather_of("/".join((*self.path, "kernel")))


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def output_logits(x, kernel, dtype: str):
    """Returns x @ kernel, (..., D) and (D, V) -> (..., V) float32: the logits of a vocabulary.

    Products have operands of `dtype` and float32 sums, in the gradient too.
    """
    logits = _product(x.reshape(-1, x.shape[-1]), kernel, dtype)
    return logits.reshape(*x.shape[:-1], -1)


def _product(a, b, dtype):
    return jnp.matmul(a.astype(dtype), b.astype(dtype), preferred_element_type=jnp.float32)


def _logits_forward(x, kernel, dtype):
    return output_logits(x, kernel, dtype), (x, kernel)


def _logits_backward(dtype, saved, gradient):
    x, kernel = saved
    gradient = gradient.reshape(-1, gradient.shape[-1])
    x_gradient = _product(gradient, kernel.T, dtype).reshape(x.shape)
    return x_gradient.astype(x.dtype), _product(x.reshape(-1, x.shape[-1]).T, gradient, dtype)


output_logits.defvjp(_logits_forward, _logits_backward)
