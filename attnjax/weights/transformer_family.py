"""What the families of encoder-decoder checkpoints share: `Family`, and the names of layers in torch's state dicts."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from attnjax.errors import UserError
from attnjax.models.transformer import Transformer
from attnjax.weights.files import Arrays
from attnjax.weights.naming import Format, within

TARGET, SOURCE, OUTPUT = "target_embedding/embedding", "source_embedding/embedding", "output/kernel"
BIAS = "logits_bias"
_ALL_FAMILIES = {"cross_attention": (("plain",),), "key_size": (0,)}  # {model field: values that any can compute}


@dataclasses.dataclass(frozen=True)
class Family:
    """A format of encoder-decoder checkpoints, and how to check and interpret its files."""

    format: Format
    fields: Mapping[str, tuple]  # {model field: values that the family can compute}
    # {our parameter: its possible names, a table of its own before shared ones}; tables (V, D), the bias (V,).
    tables: Mapping[str, tuple[str, ...]]
    # {regular expression: check}; a check of a non-parameter returns what is wrong with it, or "".
    buffers: Mapping[str, Callable[[np.ndarray], str]]
    describe: Callable[[Path, Arrays], Mapping[str, Any]]  # returns the description of the model beside its arrays
    pad: Callable[[Mapping[str, Any]], int | None]  # description -> the padding token's row; None if it has no row

    def check(self, model: Transformer) -> None:
        """Raises UserError if the family cannot compute what the model does."""
        wrong = [
            f"{field}={getattr(model, field)}, not {' or '.join(map(str, accepted))}"
            for field, accepted in {**_ALL_FAMILIES, **self.fields}.items()
            if getattr(model, field) not in accepted
        ]
        if wrong:
            raise UserError(f"{self.format.name} does not compute this model, which has {'; '.join(wrong)}")


def modules(
    layer: str, in_encoder: Mapping[str, str], in_decoder: Mapping[str, str], outside: Mapping[str, tuple[str, ...]]
):
    """Returns a format's `modules`.

    `layer` is the family's path to a layer of {part}, numbered {i} from 0 or {n} from 1; `outside` has what is outside
    layers, with names as in `Family.tables`.
    """

    def names_of(model: Transformer) -> dict[str, str]:
        names = {ours: theirs[0] for ours, theirs in outside.items()}
        if model.tie == "all":
            names[TARGET] = outside[TARGET][-1]  # the shared table
        parts = ("encoder", model.encoder_depth, in_encoder), ("decoder", model.decoder_depth, in_decoder)
        for part, depth, inside in parts:
            for i in range(depth):
                names |= within(f"{part}_{i}/", layer.format(part=part, i=i, n=i + 1), inside)
        return names

    return names_of


_TORCH_ATTENTION = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "out_proj"}
TORCH_ENCODER = {
    **within("attention/", "self_attn.", _TORCH_ATTENTION),
    "norm1": "self_attn_layer_norm",
    "mlp/fc1": "fc1",
    "mlp/fc2": "fc2",
    "norm2": "final_layer_norm",
}
TORCH_DECODER = {
    **TORCH_ENCODER,
    **within("cross_attention/", "encoder_attn.", _TORCH_ATTENTION),
    "norm2": "encoder_attn_layer_norm",
    "norm3": "final_layer_norm",
}
