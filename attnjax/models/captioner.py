"""An image encoder with a Transformer decoder, for image captioning and multimodal machine translation."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from attnjax.errors import UserError
from attnjax.models.transformer import Transformer
from attnjax.nn.blocks import Memory
from attnjax.nn.linear import Linear
from attnjax.nn.masks import PAD, Mask, padding_mask


class Captioner(nn.Module):
    """Text from an image, or from an image and a source sentence: target input (B, T) -> logits (B, T, V) float32.

    The decoder attends to the tokens of `encoder`, a model with a method `tokens` and no head (num_classes 0). Where
    their width is not the text's, a linear layer, the adapter, projects them. Without a source this is Hugging Face's
    VisionEncoderDecoder.

    A source (B, S) is read by the text's own encoder. With one entry in `text.cross_attention` the decoder attends to
    the concatenation of source and image tokens; with two, to the source and then to the image.
    """

    encoder: nn.Module
    text: Transformer

    def __post_init__(self):
        if not hasattr(self.encoder, "tokens"):
            raise UserError(f"a captioner cannot read the features of {type(self.encoder).__name__}: it has no map")
        if not isinstance(self.text, Transformer):
            raise UserError(f"model.text should be a transformer, not '{type(self.text).__name__}'")
        super().__post_init__()

    def setup(self):
        self.adapter = Linear(self.text.width, dtype=self.text.dtype)

    @property
    def max_length(self) -> int:
        return self.text.max_length

    def __call__(self, target, image, source=None, *, train: bool = False):
        """`target` (B, T) int32 starts with bos; `image` (B, H, W, C) float32; `source` (B, S) int32 or None."""
        return self.text.decode(target, self.memories(image, source, train=train), train=train)

    def memories(self, image, source=None, *, train: bool = False) -> list[Memory]:
        """Returns the memory of each cross-attention: tokens (B, S, D) and mask."""
        kinds = self.text.cross_attention
        tokens, _ = self.encoder.tokens(image, train=train)
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
                f"text.cross_attention={tuple(kinds)}: for a source and an image it should be ('plain',), which reads "
                "both as one sequence, or two entries, like ('plain', 'gated')"
            )
        seen = jnp.ones(tokens.shape[:2], bool)
        allowed = jnp.concatenate([source != PAD, seen], 1)[:, None, None]
        return [(jnp.concatenate([words, tokens.astype(words.dtype)], 1), Mask(allowed))]

    def start_cache(self, image, source=None, *, length: int) -> dict[str, Any]:
        """Returns the KV cache for `length` steps, as `Transformer.start_cache`."""
        return self.text.cache_memories(self.memories(image, source), length)

    def step(self, cache: dict[str, Any], token, position):
        """Returns logits (B, V) for the token after `token` (B,) at `position` () int32, and the new cache."""
        return self.text.step(cache, token, position)
