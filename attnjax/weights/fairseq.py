"""The format of fairseq's Transformers, old and new."""

import re

import numpy as np

from attnjax.weights import transformer_family as base
from attnjax.weights.files import Arrays
from attnjax.weights.naming import Format

_TABLES = {
    base.TARGET: ("decoder.embed_tokens.weight",),
    base.SOURCE: ("encoder.embed_tokens.weight",),
    base.OUTPUT: ("decoder.output_projection.weight", "decoder.embed_out", "decoder.embed_tokens.weight"),
}
_OUTSIDE = _TABLES | {
    "source_positions/embedding": ("encoder.embed_positions.weight",),
    "target_positions/embedding": ("decoder.embed_positions.weight",),
    "encoder_norm": ("encoder.layer_norm",),
    "decoder_norm": ("decoder.layer_norm",),
}
_RENAMES = {  # names in old checkpoints -> names in new ones
    r"\.layer_norms\.0\.": ".self_attn_layer_norm.",
    r"(^encoder\..*)\.layer_norms\.1\.": r"\1.final_layer_norm.",
    r"(^decoder\..*)\.layer_norms\.1\.": r"\1.encoder_attn_layer_norm.",
    r"\.layer_norms\.2\.": ".final_layer_norm.",
}
_FIRST_POSITION = 2  # row of a learned table; row 1 is for padding, row 0 is never used


def _prepare(arrays: Arrays) -> Arrays:
    """Renames old names to new ones, splits packed projections (rows q, k, v), and drops rows without a position."""
    result: Arrays = {}
    for name, array in arrays.items():
        for old, new in _RENAMES.items():
            name = re.sub(old, new, name)
        if packed := re.search(r"in_proj_(weight|bias)$", name):
            rows = zip("qkv", np.array_split(array, 3), strict=True)
            result |= {f"{name[: packed.start()]}{part}_proj.{packed[1]}": own for part, own in rows}
        else:
            result[name] = array[_FIRST_POSITION:] if name.endswith("embed_positions.weight") else array
    return result


FAIRSEQ = base.Family(
    format=Format(
        name="fairseq",
        marker=r"^encoder\.embed_tokens\.weight$",
        modules=base.modules("{part}.layers.{i}.", base.TORCH_ENCODER, base.TORCH_DECODER, _OUTSIDE),
        prepare=_prepare,
    ),
    fields={"positions": ("fairseq", "learned"), "epsilon": (1e-5,), "output_bias": (False,)},
    tables=_TABLES,
    buffers={r"(^|\.)version$|_float_tensor$|embed_positions\.weights$": lambda array: ""},  # with any content
    describe=lambda path, arrays: {},
    pad=lambda description: 1,
)
