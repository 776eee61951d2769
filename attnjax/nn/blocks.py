"""The pieces Transformers are stacked from: MLP, stochastic depth, encoder block."""

from functools import partial

import flax.linen as nn
import jax

from attnjax.errors import UserError, nearest
from attnjax.nn.attention import MultiHeadAttention
from attnjax.nn.linear import Linear

ACTIVATIONS = {
    "relu": nn.relu,
    "tanh": nn.tanh,
    "gelu": partial(nn.gelu, approximate=False),  # erf: timm, Hugging Face, Swin
    "gelu_tanh": partial(nn.gelu, approximate=True),  # Google's ViT
}


def activation(name: str):
    """Returns the activation function called `name`; UserError lists the known ones."""
    if name not in ACTIVATIONS:
        raise UserError(f"unknown activation '{name}', {nearest(name, ACTIVATIONS)}")
    return ACTIVATIONS[name]


def layer_norm(epsilon: float, dtype: str, name: str) -> nn.LayerNorm:
    """Returns a LayerNorm with the two-pass variance, which does not cancel when the mean is large."""
    return nn.LayerNorm(epsilon=epsilon, use_fast_variance=False, dtype=dtype, name=name)


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016): drops a residual branch per example, scaling kept ones by 1/(1 - rate)."""

    rate: float

    @nn.compact
    def __call__(self, y, *, train: bool):
        per_example = tuple(range(1, y.ndim))
        return nn.Dropout(self.rate, broadcast_dims=per_example)(y, deterministic=not train)


class MLP(nn.Module):
    """Position-wise feed-forward network: (..., D) -> hidden -> (..., D), dropout after both maps."""

    hidden: int
    dropout: float = 0.0
    activation: str = "gelu_tanh"
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x, *, train: bool):
        linear = partial(Linear, bias_init=nn.initializers.normal(1e-6), dtype=self.dtype)
        y = activation(self.activation)(linear(self.hidden, name="fc1")(x))
        y = nn.Dropout(self.dropout)(y, deterministic=not train)
        y = linear(x.shape[-1], name="fc2")(y)
        return nn.Dropout(self.dropout)(y, deterministic=not train)


class EncoderBlock(nn.Module):
    """Pre-LN Transformer encoder block (Dosovitskiy et al. 2020, equations 2 and 3): (B, N, D) -> (B, N, D)."""

    num_heads: int
    mlp_dim: int
    dropout: float = 0.0
    attention_dropout: float = 0.0
    drop_path: float = 0.0
    activation: str = "gelu_tanh"
    epsilon: float = 1e-6
    attention_kernel: str = "auto"
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x, *, mask: jax.Array | None = None, train: bool):
        norm = partial(layer_norm, self.epsilon, self.dtype)
        attention = MultiHeadAttention(
            self.num_heads,
            dropout=self.attention_dropout,
            kernel=self.attention_kernel,
            dtype=self.dtype,
            name="attention",
        )
        y = attention(norm("norm1")(x), mask=mask, train=train)
        y = nn.Dropout(self.dropout)(y, deterministic=not train)
        x = x + DropPath(self.drop_path)(y, train=train)
        y = MLP(self.mlp_dim, self.dropout, self.activation, self.dtype, name="mlp")(norm("norm2")(x), train=train)
        return x + DropPath(self.drop_path)(y, train=train)
