"""The encoder-decoder Transformer (Vaswani et al. 2017)."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from attnjax.errors import UserError, check_choice
from attnjax.nn.blocks import BlockOptions, DecoderBlock, EncoderBlock, Memory
from attnjax.nn.dropout import Dropout
from attnjax.nn.linear import Linear, output_logits
from attnjax.nn.masks import causal_mask, padding_mask, segment_mask
from attnjax.nn.positions import SINUSOIDS, sinusoids
from attnjax.nn.remat import apply_blocks

TIES = ("none", "decoder", "all")


class Embedding(nn.Module):
    """Token table (V, D), multiplied by sqrt(D) on input but not on output (Vaswani et al. 2017, section 3.4)."""

    vocabulary: int
    features: int
    dtype: str = "float32"

    def setup(self):
        init = nn.initializers.normal(self.features**-0.5)
        self.table = self.param("embedding", init, (self.vocabulary, self.features), "float32")

    def __call__(self, tokens):
        """Returns (..., D) for tokens (...) int32."""
        return self.table[tokens].astype(self.dtype) * self.features**0.5

    def attend(self, x):
        """Returns logits (..., V) float32."""
        return output_logits(x, self.table.T, self.dtype)


class Positions(nn.Module):
    """Adds sinusoidal or learned positions to embedded tokens (B, N, D) at integer positions (B, N) or (N,)."""

    kind: str  # one of SINUSOIDS, or "learned"
    length: int
    features: int
    dtype: str = "float32"

    def setup(self):
        check_choice("positions", self.kind, (*SINUSOIDS, "learned"))
        if self.kind == "learned":
            init = nn.initializers.normal(self.features**-0.5)
            self.table = self.param("embedding", init, (self.length, self.features), "float32")
        else:
            self.table = sinusoids(self.length, self.features, self.kind)

    def __call__(self, x, positions):
        return x + jnp.asarray(self.table)[positions].astype(self.dtype)


class Transformer(nn.Module):
    """Encoder-decoder Transformer: source (B, S), target input (B, T) int32 -> logits (B, T, vocabulary) float32.

    Token 0 is padding. With teacher forcing the target input starts with bos; logits at t are for token t + 1.
    TRANSFORMER_SIZES has the paper's base and big and two smaller published sizes. Packed rows need their positions
    and segments (1, 2, ..., padding 0). For incremental decoding there are `start_cache` and `step`; for the memory of
    another encoder, such as an image's, `decode` and `cache_memories`.
    """

    source_vocabulary: int
    target_vocabulary: int
    width: int = 512
    encoder_depth: int = 6
    decoder_depth: int = 6
    num_heads: int = 8
    key_size: int = 0  # features per head of queries and keys; 0: as of values, width / num_heads; table 3 (B)
    mlp_dim: int = 2048
    norm: str = "post"  # "pre" adds a final LayerNorm to encoder and decoder
    positions: str = "interleaved"
    max_length: int = 1024  # tokens per sentence
    tie: str = "all"  # "decoder": the target table is the output kernel; "all": the source table too; "none"
    output_bias: bool = False  # on the logits, as in Marian
    cross_attention: Sequence[str] = ("plain",)  # per memory of the decoder: "plain" or "gated"; see `DecoderBlock`
    dropout: float = 0.1  # on embeddings and on the output of each sub-layer
    hidden_dropout: float = 0.0
    attention_dropout: float = 0.0
    activation: str = "relu"
    epsilon: float = 1e-6
    attention_kernel: str = "auto"
    dtype: str = "float32"
    remat: str = "none"  # gradient checkpointing of each block: "none", "full" or "dots"; see `nn.remat`
    scan: bool = False  # over encoder and decoder blocks, so that one each is compiled; see `nn.remat`

    def setup(self):
        check_choice("tie", self.tie, TIES)
        if self.tie == "all" and self.source_vocabulary != self.target_vocabulary:
            sizes = f"{self.source_vocabulary} and {self.target_vocabulary}"
            raise UserError(f"tie=all needs one joint vocabulary, not {sizes} tokens; use tie=decoder or a joint one")
        self.target_embedding = Embedding(self.target_vocabulary, self.width, self.dtype)
        if self.tie == "all":
            self.source_embedding = self.target_embedding
        else:
            self.source_embedding = Embedding(self.source_vocabulary, self.width, self.dtype)
        if self.tie == "none":
            self.output = Linear(self.target_vocabulary, use_bias=False)
        if self.output_bias:
            self.logits_bias = self.param("logits_bias", nn.initializers.zeros, (self.target_vocabulary,), "float32")
        self.source_positions = Positions(self.positions, self.max_length, self.width, self.dtype)
        self.target_positions = Positions(self.positions, self.max_length, self.width, self.dtype)
        options = BlockOptions.of(self)
        self.encoder = [EncoderBlock(self.num_heads, self.mlp_dim, options) for _ in range(self.encoder_depth)]
        self.decoder = [
            DecoderBlock(self.width, self.num_heads, self.mlp_dim, self.cross_attention, options)
            for _ in range(self.decoder_depth)
        ]
        if self.norm == "pre":
            self.encoder_norm, self.decoder_norm = options.layer_norm(), options.layer_norm()
        self.drop = Dropout(self.dropout)

    def __call__(
        self, source, target, *, source_segments=None, target_segments=None, positions=None, train: bool = False
    ):
        """`positions` are those of source (B, S) and target (B, T), as in packed rows; by default they count from 0."""
        source_at, target_at = positions or (None, None)
        memory = self.encode(source, segments=source_segments, positions=source_at, train=train)
        packed = target_segments is not None
        memory_mask = segment_mask(target_segments, source_segments) if packed else padding_mask(source)
        return self.decode(target, [(memory, memory_mask)], segments=target_segments, positions=target_at, train=train)

    def encode(self, source, *, segments=None, positions=None, train: bool = False):
        """Returns the memory (B, S, D) of a source (B, S)."""
        mask = padding_mask(source) if segments is None else segment_mask(segments, segments)
        x = self._embed(source, self.source_embedding, self.source_positions, positions, train)
        x = apply_blocks(self.encoder, x, masks=[mask], remat=self.remat, scan=self.scan, train=train)
        return self.encoder_norm(x) if self.norm == "pre" else x

    def decode(self, target, memories: Sequence[Memory], *, segments=None, positions=None, train: bool = False):
        """Returns logits (B, T, V) of a target input (B, T), given one memory per entry of `cross_attention`."""
        mask = causal_mask()
        if segments is not None:
            mask = mask & segment_mask(segments, segments)
        x = self._embed(target, self.target_embedding, self.target_positions, positions, train)
        x = apply_blocks(self.decoder, x, memories, masks=[mask], remat=self.remat, scan=self.scan, train=train)
        return self._logits(x)

    def start_cache(self, source, *, length: int) -> dict[str, Any]:
        """Encodes a source (B, S) and returns the KV cache for `length` steps; every leaf has the batch first."""
        return self.cache_memories([(self.encode(source), padding_mask(source))], length)

    def cache_memories(self, memories: Sequence[Memory], length: int) -> dict[str, Any]:
        """Returns the KV cache for `length` steps, as `start_cache`.

        All hypotheses of a source share "memory", the keys, values and masks of the cross-attention. Each has its own
        "state", the keys and values of its tokens.
        """
        tokens, masks = zip(*memories, strict=True)
        layers = [block.start_cache(tokens, length) for block in self.decoder]
        shared = {"layers": [layer["memories"] for layer in layers], "masks": masks}
        return {"memory": shared, "state": [layer["self"] for layer in layers]}

    def step(self, cache: dict[str, Any], token, position) -> tuple[jax.Array, dict[str, Any]]:
        """Returns logits (B, V) for the token after `token` (B,) at `position` () int32, and the new cache."""
        at = jnp.broadcast_to(position, (1,))
        x = self._embed(token[:, None], self.target_embedding, self.target_positions, at, train=False)
        memory, state = cache["memory"], []
        for block, own, shared in zip(self.decoder, cache["state"], memory["layers"], strict=True):
            x, layer = block.step(x, {"self": own, "memories": shared}, position, memory_masks=memory["masks"])
            state.append(layer["self"])
        return self._logits(x)[:, 0], cache | {"state": state}

    def _embed(self, tokens, embedding, add_positions, positions, train):
        if tokens.shape[1] > self.max_length:
            raise UserError(f"{tokens.shape[1]} tokens are more than the model's max_length={self.max_length}")
        positions = jnp.arange(tokens.shape[1]) if positions is None else positions
        x = add_positions(embedding(tokens), positions)
        return self.drop(x, train=train)

    def _logits(self, x):
        x = self.decoder_norm(x) if self.norm == "pre" else x
        x = self.output(x.astype(jnp.float32)) if self.tie == "none" else self.target_embedding.attend(x)
        return x + self.logits_bias if self.output_bias else x


def _size(width, mlp_dim, num_heads, depth, dropout):
    depths = dict(encoder_depth=depth, decoder_depth=depth)
    return dict(width=width, mlp_dim=mlp_dim, num_heads=num_heads, dropout=dropout, **depths)


TRANSFORMER_SIZES: dict[str, dict[str, Any]] = {
    "base": _size(512, 2048, 8, 6, 0.1),
    "big": _size(1024, 4096, 16, 6, 0.3),  # 0.1 for English to French
    "iwslt": _size(512, 1024, 4, 6, 0.3),  # fairseq's transformer_iwslt_de_en
    "tiny": _size(128, 256, 4, 4, 0.3),  # Revisit-MMT's Multi30k baseline
}
