"""The pieces Transformers are stacked from: MLP, residual connections, stochastic depth, encoder and decoder block."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from attnjax.errors import UserError, nearest
from attnjax.nn.attention import MultiHeadAttention
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

    rate: float | jax.Array  # an array () from a scan over blocks

    @nn.compact
    def __call__(self, y, *, train: bool):
        if not isinstance(self.rate, jax.Array):
            per_example = tuple(range(1, y.ndim))
            return nn.Dropout(self.rate, broadcast_dims=per_example)(y, deterministic=not train)
        if not train:
            return y
        kept = 1 - self.rate
        keep = jax.random.bernoulli(self.make_rng("dropout"), kept, (y.shape[0],) + (1,) * (y.ndim - 1))
        return jnp.where(keep, y / kept.astype(y.dtype), 0)


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
    key_size: int = 0  # of a head's queries and keys; 0: as of its values
    norm: str = "pre"
    dropout: float = 0.0  # on the output of each branch
    hidden_dropout: float = 0.0  # inside the MLP
    attention_dropout: float = 0.0
    drop_path: float | jax.Array = 0.0
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
            key_size=self.key_size,
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


CROSS_ATTENTIONS = ("plain", "gated")
Memory = tuple[jax.Array, jax.Array | None]  # tokens (B, S, D') and their mask, broadcastable to (B, H, T, S)


class DecoderBlock(nn.Module):
    """Transformer decoder block (Vaswani et al. 2017, section 3.1): masked self-attention, cross-attention, MLP.

    It looks into as many memories as `cross_attention` has entries, one after another. Of a "gated" one it adds
    tanh(gate) times what it finds; the gate, a number, starts at 0, as if there were no such memory (Alayrac et al.
    2022, section 2.2).
    """

    features: int
    num_heads: int
    mlp_dim: int
    key_size: int = 0  # of a head's queries and keys; 0: as of its values
    norm: str = "post"
    cross_attention: Sequence[str] = ("plain",)
    dropout: float = 0.0  # on the output of each branch
    hidden_dropout: float = 0.0  # inside the MLP
    attention_dropout: float = 0.0
    activation: str = "relu"
    epsilon: float = 1e-6
    attention_kernel: str = "auto"
    dtype: str = "float32"

    def setup(self):
        for kind in self.cross_attention:
            if kind not in CROSS_ATTENTIONS:
                raise UserError(f"unknown cross_attention '{kind}', {nearest(kind, CROSS_ATTENTIONS)}")
        attention = partial(
            MultiHeadAttention,
            self.num_heads,
            self.features,
            key_size=self.key_size,
            dropout=self.attention_dropout,
            kernel=self.attention_kernel,
            dtype=self.dtype,
        )
        norm = partial(layer_norm, self.epsilon, self.dtype)
        self.attention = attention()
        self.mlp = MLP(self.mlp_dim, self.hidden_dropout, self.activation, self.dtype)
        self.norm1, self.norm3 = norm(None), norm(None)
        ends = ["", *range(2, 1 + len(self.cross_attention))]  # of names: the first memory's have no number
        self.look_ups = [attention(name=f"cross_attention{end}") for end in ends]
        self.look_up_norms = [norm(f"cross_norm{end}" if end else "norm2") for end in ends]
        self.gates = [
            jnp.tanh(self.param(f"gate{end}", nn.initializers.zeros, (), "float32")) if kind == "gated" else None
            for kind, end in zip(self.cross_attention, ends, strict=True)
        ]
        self.drop = nn.Dropout(self.dropout)

    def __call__(self, x, memories: Sequence[Memory], *, mask, train: bool):
        """Returns (B, T, D) from x (B, T, D), its mask, and the memories."""
        look_ups = [
            lambda y, layer=layer, memory=memory: layer(y, memory[0], mask=memory[1], train=train)
            for layer, memory in zip(self.look_ups, memories, strict=True)
        ]
        return self._branches(x, lambda y: self.attention(y, mask=mask, train=train), look_ups, train)

    def start_cache(self, memories: Sequence[jax.Array], length: int) -> dict[str, Any]:
        """Returns the cache for `length` steps over memories (B, S, D'); every leaf has the batch first."""
        own = self.attention.start_cache(memories[0].shape[0], length)
        found = [layer.keys_and_values(memory) for layer, memory in zip(self.look_ups, memories, strict=True)]
        return {"self": own, "memories": found}

    def step(self, x, cache: dict[str, Any], position, *, memory_masks: Sequence[jax.Array | None]):
        """Returns (B, 1, D) and the new cache, for one token x (B, 1, D) at `position`."""

        def attend(y):
            nonlocal cache
            y, own = self.attention.step(y, cache["self"], position)
            cache = cache | {"self": own}
            return y

        look_ups = [
            lambda y, layer=layer, memory=memory, mask=mask: layer.look_up(y, memory, mask=mask)
            for layer, memory, mask in zip(self.look_ups, cache["memories"], memory_masks, strict=True)
        ]
        return self._branches(x, attend, look_ups, train=False), cache

    def _branches(self, x, attend, look_ups, train):
        def drop(y):
            return self.drop(y, deterministic=not train)

        def gated(y, gate):
            return y if gate is None else gate.astype(y.dtype) * y

        x = residual(x, lambda y: drop(attend(y)), self.norm1, self.norm)
        for look_up, norm, gate in zip(look_ups, self.look_up_norms, self.gates, strict=True):
            x = residual(x, lambda y, look_up=look_up, gate=gate: drop(gated(look_up(y), gate)), norm, self.norm)
        return residual(x, lambda y: drop(self.mlp(y, train=train)), self.norm3, self.norm)
