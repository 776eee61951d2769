"""The linear map under attention and MLP."""

import math
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
from flax.linen.dtypes import promote_dtype


def xavier_uniform(in_axes: int) -> Callable:
    """Returns Glorot & Bengio's (2010) initializer for a kernel whose first `in_axes` axes are contracted."""

    def init(key, shape, dtype):
        axes = range(len(shape))
        in_axis, out_axis = tuple(axes[:in_axes]), tuple(axes[in_axes:])
        return jax.nn.initializers.xavier_uniform(in_axis=in_axis, out_axis=out_axis)(key, shape, dtype)

    return init


class Linear(nn.Module):
    """Maps the last `in_axes` axes of x to `features`: (..., *in) -> (..., *features).

    All leading axes are flattened into one for the product. On a CPU the gradient of a 2-D product takes about half
    the time of the same product with a batch axis (`experiments/benchmark.py layouts`).
    """

    features: int | Sequence[int]
    in_axes: int = 1
    use_bias: bool = True
    kernel_init: Callable | None = None  # Xavier uniform
    bias_init: Callable = nn.initializers.zeros
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x):
        out = (self.features,) if isinstance(self.features, int) else tuple(self.features)
        lead, contracted = x.shape[: -self.in_axes], x.shape[-self.in_axes :]
        kernel_init = self.kernel_init or xavier_uniform(self.in_axes)
        kernel = self.param("kernel", kernel_init, contracted + out, "float32")
        bias = self.param("bias", self.bias_init, out, "float32") if self.use_bias else None
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        y = x.reshape(-1, math.prod(contracted)) @ kernel.reshape(math.prod(contracted), -1)
        if bias is not None:
            y = y + bias.reshape(-1)
        return y.reshape(lead + out)
