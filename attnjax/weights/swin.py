"""The formats of Swin checkpoints: Microsoft, timm, Hugging Face (both namings)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from attnjax.models.swin import EPSILON, Swin, maps
from attnjax.nn.windows import fit_window
from attnjax.weights import naming
from attnjax.weights.files import Arrays
from attnjax.weights.naming import Format, Settings, block_names, within
from attnjax.weights.vit import HUGGINGFACE_5_BLOCK, TIMM_BLOCK

_TABLE, _OUR_TABLE = "relative_position_bias_table", "attention/relative_positions/embedding"
_OUTSIDE = ("patch_embedding/projection", "patch_norm", "positions/embedding", "final_norm", "head")
_MERGING = {"norm": "norm", "reduction": "reduction"}
_BUFFERS = ("relative_position_index", "attn_mask")  # functions of the sizes; we compute our own


def _modules(layer: str, in_block: dict[str, str], outside: str, merging_before: int):
    """Returns a format's `modules`; `layer` is the family's path to stage {s}, `outside` its paths for _OUTSIDE.

    Patch merging belongs to the stage before it (`merging_before` 1) or to the stage it opens (0).
    """

    def modules(model: Swin) -> dict[str, str]:
        names = dict(zip(_OUTSIDE, outside.split(), strict=True))
        for s, depth in enumerate(model.depths):
            names |= within(f"stage{s + 1}_merging/", layer.format(s=s - merging_before) + "downsample.", _MERGING)
            for i in range(depth):
                names |= within(f"stage{s + 1}_block{i + 1}/", layer.format(s=s) + f"blocks.{i}.", in_block)
        return names

    return modules


def _drop_buffers(arrays: Arrays) -> Arrays:
    return {name: array for name, array in arrays.items() if not name.endswith(_BUFFERS)}


def flat_tables(arrays: Arrays) -> Arrays:
    """Reshapes tables of relative positions as in the files: (rows, columns, heads) -> (rows * columns, heads)."""
    return {name: x.reshape(-1, x.shape[-1]) if name.endswith(_TABLE) else x for name, x in arrays.items()}


def _huggingface_settings(model: Swin) -> Settings:
    return {
        "num_heads": (f"num_heads={tuple(model.num_heads)}", (list(model.num_heads),)),
        "hidden_act": ("gelu", ("gelu", "gelu_python")),
        "layer_norm_eps": (f"an epsilon of {EPSILON}", (EPSILON,)),
        "qkv_bias": ("biases of query, key and value (True)", (True,)),
    }


def _shift_by_shorter_side(config: Mapping[str, Any], image_size: tuple[int, int] | None) -> dict[str, Any]:
    """Returns the rule of Microsoft and Hugging Face, if timm's is another one for some map of the images."""
    sizes = maps(image_size, config["patch_size"], len(config["depths"])) if image_size else []
    rules = [[fit_window(size, config["window"], rule) for size in sizes] for rule in ("shorter_side", "per_axis")]
    return {"shift_rule": "shorter_side"} if image_size is None or rules[0] != rules[1] else {}


def _shift_per_axis(config: Mapping[str, Any], image_size: tuple[int, int] | None) -> dict[str, Any]:
    """Returns timm's rule, if that of the others is another one for some map of the images."""
    return dict.fromkeys(_shift_by_shorter_side(config, image_size), "per_axis")


_MICROSOFT_BLOCK = TIMM_BLOCK | {_OUR_TABLE: f"attn.{_TABLE}"}
_MICROSOFT_OUTSIDE = "patch_embed.proj patch_embed.norm absolute_pos_embed norm"
_HUGGINGFACE_BLOCK = block_names(
    "layernorm_before layernorm_after",
    "attention.self.query attention.self.key attention.self.value attention.output.dense",
    "intermediate.dense output.dense",
) | {_OUR_TABLE: f"attention.self.{_TABLE}"}
_HUGGINGFACE_5_BLOCK = HUGGINGFACE_5_BLOCK | {_OUR_TABLE: f"attention.relative_position_bias.{_TABLE}"}
_HUGGINGFACE_OUTSIDE = (
    "swin.embeddings.patch_embeddings.projection swin.embeddings.norm swin.embeddings.position_embeddings "
    "swin.layernorm classifier"
)

# Also timm before version 0.9.
MICROSOFT = Format(
    name="Microsoft's",
    marker=r"^layers\.0\.downsample\.",
    prepare=lambda arrays: naming.split_qkv(_drop_buffers(arrays)),
    resize_rule="bicubic",
    fields=_shift_by_shorter_side,
    modules=_modules("layers.{s}.", _MICROSOFT_BLOCK, f"{_MICROSOFT_OUTSIDE} head", merging_before=1),
)

TIMM = dataclasses.replace(
    MICROSOFT,
    name="timm",
    marker=r"^patch_embed\.proj\.weight$",  # matches Microsoft's too, which are tried first
    fields=_shift_per_axis,
    modules=_modules("layers.{s}.", _MICROSOFT_BLOCK, f"{_MICROSOFT_OUTSIDE} head.fc", merging_before=0),
)

HUGGINGFACE = Format(
    name="Hugging Face (4, as on the Hub)",
    marker=r"encoder\.layers\.0\.blocks\.0\.attention\.self\.query\.",
    prepare=lambda arrays: naming.name_bare_model(_drop_buffers(arrays), "swin."),
    resize_rule="bicubic",
    settings=_huggingface_settings,
    fields=_shift_by_shorter_side,
    modules=_modules("swin.encoder.layers.{s}.", _HUGGINGFACE_BLOCK, _HUGGINGFACE_OUTSIDE, merging_before=1),
)

HUGGINGFACE_5 = dataclasses.replace(
    HUGGINGFACE,
    name="Hugging Face (5)",
    marker=r"encoder\.layers\.0\.blocks\.0\.attention\.q_proj\.",
    modules=_modules("swin.encoder.layers.{s}.", _HUGGINGFACE_5_BLOCK, _HUGGINGFACE_OUTSIDE, merging_before=1),
)

FORMATS = (MICROSOFT, TIMM, HUGGINGFACE, HUGGINGFACE_5)


def to_huggingface(model: Swin, variables: Arrays, image_size: tuple[int, int]) -> tuple[Arrays, dict[str, Any]]:
    """Returns the arrays and the model's part of config.json for transformers' SwinForImageClassification.

    UserError if that class cannot compute this model for images of `image_size` (height, width).
    """
    arrays = naming.to_published(variables, HUGGINGFACE, model)
    side = 2 * model.window - 1
    smaller = any(name.endswith(_TABLE) and array.shape[:2] != (side, side) for name, array in arrays.items())
    shape = {"patch_size": model.patch_size, "depths": model.depths, "window": model.window}
    rule = _shift_by_shorter_side(shape, image_size).get("shift_rule", model.shift_rule)
    problems = {
        f"position={model.position}": model.position not in ("relative", "both"),
        "shift=False": not model.shift,
        "no head": not model.num_classes,
        f"a window of {model.window} is larger than a feature map": smaller,
        "a feature map that shifts along one axis only (shift_rule=per_axis)": rule != model.shift_rule,
    }
    naming.check_expressible("SwinForImageClassification", problems)
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
