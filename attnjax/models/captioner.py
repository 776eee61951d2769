"""An image encoder and a Transformer's decoder, joined by cross-attention: captions, and translation with an image."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from attnjax.errors import UserError
from attnjax.models.transformer import Transformer
from attnjax.nn.blocks import Memory
from attnjax.nn.linear import Linear
from attnjax.nn.masks import padding_mask


class Captioner(nn.Module):
    """Text from an image, or from an image and a source sentence: target input (B, T) -> logits (B, T, V) float32.

    The image's memory are the tokens of `encoder`, any model with a method `tokens`, without its head (num_classes 0);
    a linear layer, the adapter, brings them to the text's width where it differs. As Hugging Face's
    VisionEncoderDecoder, where there is no source.

    With a source (B, S), which the text's own encoder reads, `text.cross_attention` says how the decoder looks at the
    two memories: one entry, at both as one sequence, the source's tokens first; two, at the source, then the image.
    """

    encoder: nn.Module
    text: Transformer
    freeze_encoder: bool = False  # no gradient, no dropout, fixed batch statistics; the optimizer leaves it alone too

    def setup(self):
        if not hasattr(self.encoder, "tokens"):
            raise UserError(f"a captioner cannot look at the features of {type(self.encoder).__name__}: it has no map")
        self.adapter = Linear(self.text.width, dtype=self.text.dtype)

    @property
    def max_length(self) -> int:
        return self.text.max_length

    def __call__(self, target, image, source=None, *, train: bool = False):
        """`target` (B, T) int32 begins with bos; `image` (B, H, W, C) float32; `source` (B, S) int32 or None."""
        return self.text.decode(target, self.memories(image, source, train=train), train=train)

    def memories(self, image, source=None, *, train: bool = False) -> list[Memory]:
        """Returns what each cross-attention looks at: tokens (B, S, D) and mask."""
        kinds = self.text.cross_attention
        tokens, _ = self.encoder.tokens(image, train=train and not self.freeze_encoder)
        if self.freeze_encoder:
            tokens = jax.lax.stop_gradient(tokens)
        if tokens.shape[-1] != self.text.width:
            tokens = self.adapter(tokens)
        if source is None:
            if len(kinds) != 1:
                raise UserError(f"text.cross_attention={tuple(kinds)}: without a source there is one memory, the image")
            return [(tokens, None)]
        words, mask = self.text.encode(source, train=train), padding_mask(source)
        if len(kinds) == 2:
            return [(words, mask), (tokens, None)]
        if tuple(kinds) != ("plain",):
            raise UserError(
                f"text.cross_attention={tuple(kinds)}: for a source and an image it should be ('plain',), at both as "
                "one, or two entries, like ('plain', 'gated')"
            )
        seen = jnp.ones((*mask.shape[:-1], tokens.shape[1]), bool)
        return [(jnp.concatenate([words, tokens.astype(words.dtype)], 1), jnp.concatenate([mask, seen], -1))]

    def start_cache(self, image, source=None, *, length: int) -> dict[str, Any]:
        """Returns the cache for `length` decoding steps, as the Transformer's."""
        return self.text.cache_memories(self.memories(image, source), length)

    def step(self, cache: dict[str, Any], token, position):
        """Returns logits (B, V) for the token after `token` (B,) at `position` () int32, and the new cache."""
        return self.text.step(cache, token, position)
