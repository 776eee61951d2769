"""The blocks of a Transformer: MLP, encoder block and decoder block, each sub-layer in a residual connection.

Pre-norm is x + f(norm(x)); post-norm, as in Vaswani et al. (2017), is norm(x + f(x)).
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from attnjax.errors import check_choice
from attnjax.nn.activations import activation
from attnjax.nn.attention import MultiHeadAttention
from attnjax.nn.dropout import Dropout, DropPath
from attnjax.nn.linear import Linear
from attnjax.nn.masks import Mask
from attnjax.nn.norm import LayerNorm
from attnjax.nn.windows import Pair

NORMS = ("pre", "post")
CROSS_ATTENTIONS = ("plain", "gated")
Memory = tuple[jax.Array, Mask | None]  # tokens (B, S, D') and which of them a query may attend to


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
        y = Dropout(self.dropout)(y, train=train)
        return linear(x.shape[-1], name="fc2")(y)


@dataclasses.dataclass(frozen=True)
class BlockOptions:
    """The settings that all blocks of a model share, and the layers with these settings."""

    dropout: float = 0.0  # on the output of each sub-layer
    hidden_dropout: float = 0.0  # inside the MLP
    attention_dropout: float = 0.0  # on the attention weights
    norm: str = "pre"  # of NORMS
    activation: str = "gelu_tanh"  # of `nn.activations`
    epsilon: float = 1e-6  # of LayerNorm
    attention_kernel: str = "auto"
    key_size: int = 0  # features per head of queries and keys; 0: as many as the values have
    kernel_init: Callable | None = None  # of attention and MLP; default: Linear's
    dtype: str = "float32"

    def __post_init__(self):
        check_choice("norm", self.norm, NORMS)

    @classmethod
    def of(cls, model: nn.Module, **options) -> "BlockOptions":
        """Returns `options` and, for the others, the fields of the same names that the model has."""
        names = {f.name for f in dataclasses.fields(cls)} & {f.name for f in dataclasses.fields(model)}
        return cls(**{name: getattr(model, name) for name in names} | options)

    def layer_norm(self, name: str | None = None) -> LayerNorm:
        return LayerNorm(self.epsilon, self.dtype, name=name)

    def attention(self, num_heads: int, features: int, **fields) -> MultiHeadAttention:
        fields |= dict(key_size=self.key_size, dropout=self.attention_dropout, kernel=self.attention_kernel)
        return MultiHeadAttention(num_heads, features, kernel_init=self.kernel_init, dtype=self.dtype, **fields)

    def mlp(self, hidden: int, name: str | None = None) -> MLP:
        return MLP(hidden, self.hidden_dropout, self.activation, self.dtype, self.kernel_init, name=name)


class EncoderBlock(nn.Module):
    """Transformer encoder block, self-attention and MLP: (B, N, D) -> (B, N, D)."""

    num_heads: int
    mlp_dim: int
    options: BlockOptions = BlockOptions()
    drop_path: float | jax.Array = 0.0
    relative_grid: Pair | None = None  # of the attention's relative positions

    @nn.compact
    def __call__(self, x, *, mask: Mask | None = None, train: bool):
        options, pre = self.options, self.options.norm == "pre"
        attention = options.attention(self.num_heads, x.shape[-1], relative_grid=self.relative_grid, name="attention")
        mlp = options.mlp(self.mlp_dim, name="mlp")
        norm1, norm2 = options.layer_norm("norm1"), options.layer_norm("norm2")

        y = norm1(x) if pre else x
        y = attention(y, mask=mask, train=train)
        y = Dropout(options.dropout)(y, train=train)
        x = x + DropPath(self.drop_path)(y, train=train)
        x = x if pre else norm1(x)

        y = norm2(x) if pre else x
        y = mlp(y, train=train)
        y = Dropout(options.dropout)(y, train=train)
        x = x + DropPath(self.drop_path)(y, train=train)
        return x if pre else norm2(x)


class DecoderBlock(nn.Module):
    """Transformer decoder block (Vaswani et al. 2017, section 3.1): masked self-attention, cross-attention, MLP.

    `cross_attention` has one entry per memory; the block attends to the memories one after another. The output of a
    "gated" one is multiplied by tanh(gate). The gate is a learned scalar that starts at 0, which hides the memory
    (Alayrac et al. 2022, section 2.2).
    """

    features: int
    num_heads: int
    mlp_dim: int
    cross_attention: Sequence[str] = ("plain",)  # of CROSS_ATTENTIONS
    options: BlockOptions = BlockOptions(norm="post", activation="relu")

    def setup(self):
        options = self.options
        for kind in self.cross_attention:
            check_choice("cross_attention", kind, CROSS_ATTENTIONS)
        self.attention = options.attention(self.num_heads, self.features)
        self.mlp = options.mlp(self.mlp_dim)
        self.norm1, self.norm3 = options.layer_norm(), options.layer_norm()
        ends = ["", *range(2, 1 + len(self.cross_attention))]  # names of the first memory's layers have no number
        self.look_ups = [options.attention(self.num_heads, self.features, name=f"cross_attention{end}") for end in ends]
        self.look_up_norms = [options.layer_norm(f"cross_norm{end}" if end else "norm2") for end in ends]
        self.gates = [
            jnp.tanh(self.param(f"gate{end}", nn.initializers.zeros, (), "float32")) if kind == "gated" else None
            for kind, end in zip(self.cross_attention, ends, strict=True)
        ]
        self.drop = Dropout(options.dropout)

    def __call__(self, x, memories: Sequence[Memory], *, mask, train: bool):
        """Returns (B, T, D) from x (B, T, D), its mask, and the memories."""
        y = self.attention(self._before(self.norm1, x), mask=mask, train=train)
        x = self._after(self.norm1, x, y, train)
        cross = zip(self.look_ups, self.look_up_norms, self.gates, memories, strict=True)
        for look_up, norm, gate, (tokens, seen) in cross:
            y = look_up(self._before(norm, x), tokens, mask=seen, train=train)
            x = self._after(norm, x, y, train, gate)
        y = self.mlp(self._before(self.norm3, x), train=train)
        return self._after(self.norm3, x, y, train)

    def start_cache(self, memories: Sequence[jax.Array], length: int) -> dict[str, Any]:
        """Returns the KV cache for `length` steps over memories (B, S, D'); every leaf has the batch first."""
        own = self.attention.start_cache(memories[0].shape[0], length)
        found = [layer.keys_and_values(memory) for layer, memory in zip(self.look_ups, memories, strict=True)]
        return {"self": own, "memories": found}

    def step(self, x, cache: dict[str, Any], position, *, memory_masks: Sequence[Mask | None]):
        """Returns (B, 1, D) and the new cache, for one token x (B, 1, D) at `position`."""
        y, own = self.attention.step(self._before(self.norm1, x), cache["self"], position)
        x = self._after(self.norm1, x, y, train=False)
        cross = zip(self.look_ups, self.look_up_norms, self.gates, cache["memories"], memory_masks, strict=True)
        for look_up, norm, gate, memory, seen in cross:
            y = look_up.look_up(self._before(norm, x), memory, mask=seen)
            x = self._after(norm, x, y, False, gate)
        y = self.mlp(self._before(self.norm3, x), train=False)
        return self._after(self.norm3, x, y, train=False), cache | {"self": own}

    def _before(self, norm, x):
        """Returns the input of a sub-layer."""
        return norm(x) if self.options.norm == "pre" else x

    def _after(self, norm, x, y, train, gate=None):
        """Returns the residual stream after the sub-layer's output y, which the gate multiplies if there is one."""
        y = y if gate is None else gate.astype(y.dtype) * y
        x = x + self.drop(y, train=train)
        return norm(x) if self.options.norm == "post" else x
