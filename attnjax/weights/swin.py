"""The formats of Swin checkpoints: Microsoft, timm, Hugging Face (both namings)."""

import math
from typing import Any

from attnjax.errors import UserError
from attnjax.models.swin import EPSILON, Swin, padded_grid
from attnjax.weights import naming
from attnjax.weights.files import Arrays
from attnjax.weights.naming import Format, Settings, block_names
from attnjax.weights.vit import HUGGINGFACE_5_BLOCK, TIMM_BLOCK

_TABLE = "relative_position_bias_table"
_BUFFERS = ("relative_position_index", "attn_mask")  # functions of the sizes; we compute our own


def _modules(layer: str, in_block: dict[str, str], outside: dict[str, str], merging_before: int):
    """Returns a format's `modules`; `layer` is the family's path to stage {s}.

    Patch merging belongs to the stage before it (`merging_before` 1) or to the stage it opens (0).
    """

    def modules(model: Swin) -> dict[str, str]:
        names = dict(outside)
        for s, depth in enumerate(model.depths):
            for part in ("norm", "reduction"):
                merging = layer.format(s=s - merging_before) + "downsample."
                names[f"stage{s + 1}_merging/{part}"] = merging + part
            for i in range(depth):
                block = layer.format(s=s) + f"blocks.{i}."
                names |= {f"stage{s + 1}_block{i + 1}/{ours}": block + theirs for ours, theirs in in_block.items()}
        return names

    return modules


def _square_tables(arrays: Arrays) -> Arrays:
    """Drops buffers and reshapes tables of relative positions: (side**2, heads) -> (side, side, heads)."""
    kept = {name: array for name, array in arrays.items() if not name.endswith(_BUFFERS)}
    for name, array in kept.items():
        if name.endswith(_TABLE) and array.ndim == 2:
            side = math.isqrt(len(array))
            if side * side != len(array):
                raise UserError(f"{name} has {len(array)} rows: only tables of square windows can be read")
            kept[name] = array.reshape(side, side, -1)
    return kept


def flat_tables(arrays: Arrays) -> Arrays:
    """Reshapes tables of relative positions as in the files: (rows, columns, heads) -> (rows * columns, heads)."""
    return {
        name: array.reshape(-1, array.shape[-1]) if name.endswith(_TABLE) else array for name, array in arrays.items()
    }


def _huggingface_settings(model: Swin) -> Settings:
    return {
        "num_heads": (f"num_heads={tuple(model.num_heads)}", (list(model.num_heads),)),
        "hidden_act": ("gelu", ("gelu", "gelu_python")),
        "layer_norm_eps": (f"an epsilon of {EPSILON}", (EPSILON,)),
        "qkv_bias": ("biases of query, key and value (True)", (True,)),
    }


_MICROSOFT_BLOCK = TIMM_BLOCK | {"attention/relative_positions/embedding": f"attn.{_TABLE}"}
_MICROSOFT_OUTSIDE = {
    "patch_embedding/projection": "patch_embed.proj",
    "patch_norm": "patch_embed.norm",
    "positions/embedding": "absolute_pos_embed",
    "final_norm": "norm",
}
_HUGGINGFACE_OUTSIDE = {
    "patch_embedding/projection": "swin.embeddings.patch_embeddings.projection",
    "patch_norm": "swin.embeddings.norm",
    "positions/embedding": "swin.embeddings.position_embeddings",
    "final_norm": "swin.layernorm",
    "head": "classifier",
}

# Also timm before version 0.9.
MICROSOFT = Format(
    name="Microsoft's",
    marker=r"^layers\.0\.downsample\.",
    prepare=lambda arrays: naming.split_qkv(_square_tables(arrays)),
    resize_rule="bicubic",
    modules=_modules("layers.{s}.", _MICROSOFT_BLOCK, _MICROSOFT_OUTSIDE | {"head": "head"}, merging_before=1),
)

TIMM = Format(
    name="timm",
    marker=r"^patch_embed\.proj\.weight$",  # matches Microsoft's too, which are tried first
    prepare=lambda arrays: naming.split_qkv(_square_tables(arrays)),
    resize_rule="bicubic",
    modules=_modules("layers.{s}.", _MICROSOFT_BLOCK, _MICROSOFT_OUTSIDE | {"head": "head.fc"}, merging_before=0),
)

HUGGINGFACE = Format(
    name="Hugging Face (4, as on the Hub)",
    marker=r"encoder\.layers\.0\.blocks\.0\.attention\.self\.query\.",
    prepare=lambda arrays: naming.name_bare_model(_square_tables(arrays), "swin."),
    resize_rule="bicubic",
    settings=_huggingface_settings,
    modules=_modules(
        "swin.encoder.layers.{s}.",
        block_names(
            norms="layernorm_before layernorm_after",
            attention="attention.self.query attention.self.key attention.self.value attention.output.dense",
            mlp="intermediate.dense output.dense",
        )
        | {"attention/relative_positions/embedding": f"attention.self.{_TABLE}"},
        _HUGGINGFACE_OUTSIDE,
        merging_before=1,
    ),
)

HUGGINGFACE_5 = Format(
    name="Hugging Face (5)",
    marker=r"encoder\.layers\.0\.blocks\.0\.attention\.q_proj\.",
    prepare=lambda arrays: naming.name_bare_model(_square_tables(arrays), "swin."),
    resize_rule="bicubic",
    settings=_huggingface_settings,
    modules=_modules(
        "swin.encoder.layers.{s}.",
        HUGGINGFACE_5_BLOCK | {"attention/relative_positions/embedding": f"attention.relative_position_bias.{_TABLE}"},
        _HUGGINGFACE_OUTSIDE,
        merging_before=1,
    ),
)

FORMATS = (MICROSOFT, TIMM, HUGGINGFACE, HUGGINGFACE_5)


def to_huggingface(model: Swin, variables: Arrays, image_size: tuple[int, int]) -> tuple[Arrays, dict[str, Any]]:
    """Returns the arrays and the model's part of config.json for transformers' SwinForImageClassification.

    UserError if that class cannot compute this model for images of `image_size` (height, width).
    """
    arrays = naming.to_published(variables, HUGGINGFACE, model)
    _check_expressible(model, arrays, image_size)
    description = {
        "model_type": "swin",
        **{field: accepted[0] for field, (_, accepted) in _huggingface_settings(model).items()},
        "patch_size": model.patch_size,
        "embed_dim": model.width,
        "depths": list(model.depths),
        "window_size": model.window,
        "mlp_ratio": model.mlp_ratio,
        "use_absolute_embeddings": model.position == "both",
        "hidden_dropout_prob": model.dropout,
        "attention_probs_dropout_prob": model.attention_dropout,
        "drop_path_rate": model.drop_path,
    }
    return flat_tables(arrays), description


def _check_expressible(model, arrays, image_size):
    side = 2 * model.window - 1
    smaller = any(name.endswith(_TABLE) and array.shape[:2] != (side, side) for name, array in arrays.items())
    grid = padded_grid(image_size, model.patch_size)
    maps = [[-(-length // 2**stage) for length in grid] for stage in range(len(model.depths))]
    problems = {
        f"position={model.position}": model.position not in ("relative", "both"),
        "shift=False": not model.shift,
        "no head": not model.num_classes,
        f"a window of {model.window} is larger than a feature map": smaller,
        "a feature map that shifts along one axis only": any(min(m) <= model.window < max(m) for m in maps),
    }
    naming.check_expressible("SwinForImageClassification", problems)
