"""The pieces Transformers are stacked from: MLP, residual connections, stochastic depth, encoder and decoder block."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax

from attnjax.errors import UserError, nearest
from attnjax.nn.attention import Cache, MultiHeadAttention
from attnjax.nn.linear import Linear

ACTIVATIONS = {
    "relu": nn.relu,
    "swish": nn.swish,
    "tanh": nn.tanh,
    "gelu": partial(nn.gelu, approximate=False),  # erf: timm, Hugging Face, Swin
    "gelu_tanh": partial(nn.gelu, approximate=True),  # Google's ViT
}


def activation(name: str):
    """Returns the activation function called `name`; UserError lists the known ones."""
    if name not in ACTIVATIONS:
        raise UserError(f"unknown activation '{name}', {nearest(name, ACTIVATIONS)}")
    return ACTIVATIONS[name]


def layer_norm(epsilon: float, dtype: str, name: str | None) -> nn.LayerNorm:
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
    """Position-wise feed-forward network: (..., D) -> hidden -> (..., D); `dropout` acts on the hidden layer."""

    hidden: int
    dropout: float = 0.0
    activation: str = "gelu_tanh"
    dtype: str = "float32"
    kernel_init: Callable | None = None  # of both layers; default: Linear's

    @nn.compact
    def __call__(self, x, *, train: bool):
        bias_init = nn.initializers.normal(1e-6)
        linear = partial(Linear, kernel_init=self.kernel_init, bias_init=bias_init, dtype=self.dtype)
        y = activation(self.activation)(linear(self.hidden, name="fc1")(x))
        y = nn.Dropout(self.dropout)(y, deterministic=not train)
        return linear(x.shape[-1], name="fc2")(y)


NORMS = ("pre", "post")


def residual(x, branch, norm, order: str):
    """Returns x + branch(norm(x)) for the order "pre", norm(x + branch(x)) for "post", which is Vaswani et al.'s."""
    if order not in NORMS:
        raise UserError(f"unknown norm '{order}'. Known: {', '.join(NORMS)}")
    return x + branch(norm(x)) if order == "pre" else norm(x + branch(x))


class EncoderBlock(nn.Module):
    """Transformer encoder block: self-attention and MLP, each in a residual connection.

    (B, N, D) -> (B, N, D), or of whatever shape the attention takes and returns: all else acts on each token alone.
    """

    num_heads: int
    mlp_dim: int
    norm: str = "pre"
    dropout: float = 0.0  # on the output of each branch
    hidden_dropout: float = 0.0  # inside the MLP
    attention_dropout: float = 0.0
    drop_path: float = 0.0
    activation: str = "gelu_tanh"
    epsilon: float = 1e-6
    attention_kernel: str = "auto"
    attention_layer: Callable[..., nn.Module] = MultiHeadAttention  # or a kind of it, as Swin's
    kernel_init: Callable | None = None  # of attention and MLP; default: Linear's
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x, *, mask: jax.Array | None = None, train: bool):
        attention = self.attention_layer(
            self.num_heads,
            features=x.shape[-1],
            dropout=self.attention_dropout,
            kernel=self.attention_kernel,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            name="attention",
        )
        mlp = MLP(self.mlp_dim, self.hidden_dropout, self.activation, self.dtype, self.kernel_init, name="mlp")

        def drop(y):
            y = nn.Dropout(self.dropout)(y, deterministic=not train)
            return DropPath(self.drop_path)(y, train=train)

        norm = partial(layer_norm, self.epsilon, self.dtype)
        x = residual(x, lambda y: drop(attention(y, mask=mask, train=train)), norm("norm1"), self.norm)
        return residual(x, lambda y: drop(mlp(y, train=train)), norm("norm2"), self.norm)


class DecoderBlock(nn.Module):
    """Transformer decoder block (Vaswani et al. 2017, section 3.1): masked self-attention, cross-attention, MLP."""

    features: int
    num_heads: int
    mlp_dim: int
    norm: str = "post"
    dropout: float = 0.0  # on the output of each branch
    hidden_dropout: float = 0.0  # inside the MLP
    attention_dropout: float = 0.0
    activation: str = "relu"
    epsilon: float = 1e-6
    attention_kernel: str = "auto"
    dtype: str = "float32"

    def setup(self):
        attention = partial(
            MultiHeadAttention,
            self.num_heads,
            self.features,
            dropout=self.attention_dropout,
            kernel=self.attention_kernel,
            dtype=self.dtype,
        )
        self.attention, self.cross_attention = attention(), attention()
        self.mlp = MLP(self.mlp_dim, self.hidden_dropout, self.activation, self.dtype)
        self.norm1, self.norm2, self.norm3 = (layer_norm(self.epsilon, self.dtype, None) for _ in range(3))
        self.drop = nn.Dropout(self.dropout)

    def __call__(self, x, memory, *, mask, memory_mask, train: bool):
        """Returns (B, T, D) from x (B, T, D), memory (B, S, D') and their masks."""
        return self._branches(
            x,
            lambda y: self.attention(y, mask=mask, train=train),
            lambda y: self.cross_attention(y, memory, mask=memory_mask, train=train),
            train,
        )

    def start_cache(self, memory, length: int) -> dict[str, Cache]:
        """Returns the cache for `length` steps over a memory (B, S, D'); every leaf has the batch first."""
        own = self.attention.start_cache(memory.shape[0], length)
        return {"self": own, "memory": self.cross_attention.keys_and_values(memory)}

    def step(self, x, cache: dict[str, Cache], position, *, memory_mask):
        """Returns (B, 1, D) and the new cache, for one token x (B, 1, D) at `position`."""

        def attend(y):
            nonlocal cache
            y, own = self.attention.step(y, cache["self"], position)
            cache = cache | {"self": own}
            return y

        def look_up(y):
            return self.cross_attention.look_up(y, cache["memory"], mask=memory_mask)

        return self._branches(x, attend, look_up, train=False), cache

    def _branches(self, x, attend, look_up, train):
        def drop(y):
            return self.drop(y, deterministic=not train)

        x = residual(x, lambda y: drop(attend(y)), self.norm1, self.norm)
        x = residual(x, lambda y: drop(look_up(y)), self.norm2, self.norm)
        return residual(x, lambda y: drop(self.mlp(y, train=train)), self.norm3, self.norm)
