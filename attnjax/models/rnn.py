"""Recurrent encoder-decoders, with and without attention, which the Transformer replaced."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from attnjax.errors import UserError, check_choice
from attnjax.nn.dropout import Dropout
from attnjax.nn.linear import Linear, output_logits
from attnjax.nn.masks import PAD
from attnjax.nn.recurrent import AdditiveAttention, DotAttention, Recurrent, bidirectional

ATTENTIONS = ("none", "dot", "additive")


class DecoderStep(nn.Module):
    """One step of the decoder: reads a token, updates the state and returns the features for the output layer.

    Without attention the features are the state. "additive" (Bahdanau et al. 2015): the old state attends to the memory
    and the context is concatenated to the cell's input; the features are state, context and token. "dot" (Luong et al.
    2015): the new state attends to the memory; the features are h = tanh(W [context, state]), which `input_feeding`
    concatenates to the next step's input.
    """

    cell: str
    features: int
    layers: int
    attention: str
    input_feeding: bool
    dropout: float
    dtype: str = "float32"

    def setup(self):
        check_choice("attention", self.attention, ATTENTIONS)
        if self.input_feeding and self.attention != "dot":
            raise UserError("input_feeding feeds the output of dot attention to the next step: it needs attention=dot")
        self.stack = [Recurrent(self.cell, self.features, self.dtype) for _ in range(self.layers)]
        if self.attention == "additive":
            self.look_up = AdditiveAttention(self.features, self.dtype)
        elif self.attention == "dot":
            self.look_up = DotAttention(self.features, self.dtype)
            self.combine = Linear(self.features, dtype=self.dtype)
        self.drop = Dropout(self.dropout)

    def start(self, layers, memory, mask) -> dict[str, Any]:
        """Returns the cache before the first token, for the layers' states, memory (B, S, M) and mask (B, S)."""
        state = {"layers": layers}
        if self.input_feeding:
            state["fed"] = jnp.zeros((memory.shape[0], self.features), self.dtype)
        looked_at = {}
        if self.attention != "none":
            looked_at = {"values": memory, "keys": self.look_up.keys(memory), "mask": mask}
        return {"memory": looked_at, "state": state}

    @property
    def reads_attention(self) -> bool:
        """Whether a step reads the attention of the step before, so that steps must be computed one after another."""
        return self.attention == "additive" or self.input_feeding

    def sequence(self, state: dict[str, Any], memory: dict[str, Any], tokens, train: bool):
        """Returns the features (B, T, F) for embedded tokens (B, T, E), of a decoder that does not `reads_attention`.

        Layer by layer, so that all products but those with the layer's own state are of whole sequences.
        """
        x = tokens
        for layer, start in zip(self.stack, state["layers"], strict=True):
            x = self.drop(layer(x, start=start)[0], train=train)
        return self._mix(x, memory) if self.attention == "dot" else x

    def __call__(self, state: dict[str, Any], memory: dict[str, Any], token, train: bool):
        """Returns the new state and the features (B, F), for an embedded token (B, E)."""
        x: Any = token
        context: Any = None
        if self.attention == "additive":
            context = self._context(state["layers"][-1][0], memory)
            x = jnp.concatenate([x, context], -1)
        if self.input_feeding:
            x = jnp.concatenate([x, state["fed"]], -1)
        layers: list[Any] = []
        for layer, old in zip(self.stack, state["layers"], strict=True):
            layers.append(layer.step(x, old))
            x = self.drop(layers[-1][0].astype(self.dtype), train=train)
        if self.attention == "additive":
            x = jnp.concatenate([x, context, token], -1)
        elif self.attention == "dot":
            x = self._mix(x, memory)
        return {"layers": layers} | ({"fed": x} if self.input_feeding else {}), x

    def _mix(self, x, memory):
        """Returns tanh(W [context, state])."""
        return jnp.tanh(self.combine(jnp.concatenate([self._context(x, memory), x], -1)))

    def _context(self, query, memory):
        context, weights = self.look_up(query, memory["values"], memory["keys"], memory["mask"])
        self.sow("intermediates", "attention", weights)
        return context


class RNN(nn.Module):
    """Recurrent encoder-decoder: source (B, S), target input (B, T) int32 -> logits (B, T, vocabulary) float32.

    Token 0 is padding. With teacher forcing the target input starts with bos; logits at t are for token t + 1. For
    incremental decoding there are `start_cache` and `step`, as in the Transformer. The attention weights (B, T, S) are
    sown as the intermediate "attention".
    """

    source_vocabulary: int
    target_vocabulary: int
    cell: str = "lstm"
    embedding: int = 256
    width: int = 512
    layers: int = 1
    bidirectional: bool = True  # the encoder
    attention: str = "additive"
    input_feeding: bool = False
    dropout: float = 0.5
    dtype: str = "float32"

    def setup(self):
        self.source_embedding = nn.Embed(self.source_vocabulary, self.embedding)
        self.target_embedding = nn.Embed(self.target_vocabulary, self.embedding)
        self.forward = [Recurrent(self.cell, self.width, self.dtype) for _ in range(self.layers)]
        if self.bidirectional:
            self.backward = [Recurrent(self.cell, self.width, self.dtype) for _ in range(self.layers)]
            # From the last states of both directions to the decoder's first.
            self.bridge = Linear(self.width, dtype=self.dtype)
        options = (self.cell, self.width, self.layers, self.attention, self.input_feeding, self.dropout, self.dtype)
        self.decoder = DecoderStep(*options)
        self.output = Linear(self.target_vocabulary)
        self.drop = Dropout(self.dropout)

    def __call__(self, source, target, *, train: bool = False):
        cache = self._start(source, train)
        tokens = self.drop(self._embed(self.target_embedding, target), train=train)
        if not self.decoder.reads_attention:
            return self._logits(self.decoder.sequence(cache["state"], cache["memory"], tokens, train))
        scan = nn.scan(
            lambda decoder, state, memory, token: decoder(state, memory, token, train),
            variable_broadcast="params",
            variable_axes={"intermediates": 1},
            split_rngs={"params": False, "dropout": True},
            in_axes=(nn.broadcast, 1),
            out_axes=1,
        )
        _, features = scan(self.decoder, cache["state"], cache["memory"], tokens)
        return self._logits(features)

    def start_cache(self, source, *, length: int) -> dict[str, Any]:
        """Encodes a source (B, S) and returns the state before the first token; every leaf has the batch first.

        All hypotheses of a source share "memory"; each has its own "state". `length` is ignored: the size of a
        recurrent state does not depend on it, unlike that of a Transformer's cache.
        """
        del length
        return self._start(source, train=False)

    def step(self, cache: dict[str, Any], token, position) -> tuple[jax.Array, dict[str, Any]]:
        """Returns logits (B, V) for the token after `token` (B,), and the new cache; `position` is ignored."""
        del position
        token = self._embed(self.target_embedding, token)
        state, features = self.decoder(cache["state"], cache["memory"], token, False)
        return self._logits(features), cache | {"state": state}

    def _embed(self, table, tokens):
        return table(tokens).astype(self.dtype)

    def _logits(self, features):
        kernel, bias = self.output.weights(features.shape[-1:])
        return output_logits(features, kernel, self.dtype) + bias

    def _start(self, source, train):
        mask = source != PAD
        x = self._embed(self.source_embedding, source)
        states = []
        for i in range(self.layers):
            x = self.drop(x, train=train)
            if self.bidirectional:
                x, *both = bidirectional(self.forward[i], self.backward[i], x, mask)
                pairs = zip(*both, strict=True)
                state = tuple(jnp.tanh(self.bridge(jnp.concatenate(pair, -1)).astype(jnp.float32)) for pair in pairs)
            else:
                x, state = self.forward[i](x, mask)
            states.append(state)
        return self.decoder.start(states, x, mask)
