"""The formats of ViT checkpoints: Google, timm, Hugging Face (both namings), and vision-transformer-from-scratch."""

import dataclasses
from typing import Any

from attnjax.models.vit import ViT
from attnjax.weights import naming
from attnjax.weights.files import Arrays
from attnjax.weights.naming import Format, Settings, block_names, within

_OUTSIDE = ("patch_embedding/projection", "class_token", "positions/embedding", "head", "final_norm", "pre_logits")


def _modules(block: str, in_block: dict[str, str], outside: str):
    """Returns a format's `modules`; `block` is the family's path to block {i}, `outside` its paths for _OUTSIDE."""

    def modules(model: ViT) -> dict[str, str]:
        names = dict(zip(_OUTSIDE, outside.split(), strict=False))  # a family may lack the last two
        for i in range(model.depth):
            names |= within(f"block{i}/", block.format(i=i), in_block)
        return names

    return modules


def _google_prepare(arrays: Arrays) -> Arrays:
    """Strips the prefix, splits scanned blocks, and renames pre-linen modules (numbered across kinds) as in linen."""
    prefix = next(p for p in ("opt/target/", "params/img/", "params/", "") if f"{p}embedding/kernel" in arrays)
    result = {}
    for name, array in arrays.items():
        if not name.startswith(prefix):
            continue
        name = name.removeprefix(prefix)
        for old, new in _GOOGLE_RENAMES.items():
            name = name.replace(old, new)
        if name.startswith("Transformer/encoderblock/"):
            for i, layer in enumerate(array):
                result[name.replace("encoderblock/", f"encoderblock_{i}/")] = layer
        else:
            result[name] = array
    return result


_GOOGLE_RENAMES = {
    "LayerNorm_2/": "LayerNorm_1/",
    "MultiHeadDotProductAttention_1/": "MultiHeadDotProductAttention_0/",
    "MlpBlock_3/": "MlpBlock_0/",
    "Transformer/posembed_input/pos_embedding": "pos_embedding",
}


def _huggingface_settings(model: ViT) -> Settings:
    return {
        "num_attention_heads": (f"num_heads={model.num_heads}", (model.num_heads,)),
        "hidden_act": (f"activation={model.activation}", naming.HUGGINGFACE_ACTIVATIONS[model.activation]),
        "layer_norm_eps": (f"epsilon={model.epsilon}", (model.epsilon,)),
    }


TIMM_BLOCK = block_names("norm1 norm2", "attn.query attn.key attn.value attn.proj", "mlp.fc1 mlp.fc2")
HUGGINGFACE_5_BLOCK = block_names(
    "layernorm_before layernorm_after",
    "attention.q_proj attention.k_proj attention.v_proj attention.o_proj",
    "mlp.fc1 mlp.fc2",
)
_GOOGLE_BLOCK = block_names(
    "LayerNorm_0 LayerNorm_1",
    " ".join(f"MultiHeadDotProductAttention_0/{part}" for part in ("query", "key", "value", "out")),
    "MlpBlock_0/Dense_0 MlpBlock_0/Dense_1",
)
_HUGGINGFACE_BLOCK = block_names(
    "layernorm_before layernorm_after",
    "attention.attention.query attention.attention.key attention.attention.value attention.output.dense",
    "intermediate.dense output.dense",
)
_TUTORIAL_BLOCK = block_names(
    "layernorm_1 layernorm_2",
    " ".join(f"attention.{part}_projection" for part in ("query", "key", "value", "output")),
    "mlp.dense_1 mlp.dense_2",
)
_HUGGINGFACE_OUTSIDE = (
    "vit.embeddings.patch_embeddings.projection vit.embeddings.cls_token vit.embeddings.position_embeddings "
    "classifier vit.layernorm vit.pooler.dense"
)

GOOGLE = Format(
    name="Google's npz",
    marker=r"^(opt/target/|params/img/|params/)?embedding/kernel$",
    prepare=_google_prepare,
    torch=False,
    resize_rule="linear_align_corners",
    modules=_modules(
        "Transformer/encoderblock_{i}/",
        _GOOGLE_BLOCK,
        "embedding cls pos_embedding head Transformer/encoder_norm pre_logits",
    ),
)

TIMM = Format(
    name="timm",
    marker=r"^patch_embed\.proj\.weight$",
    prepare=naming.split_qkv,
    modules=_modules("blocks.{i}.", TIMM_BLOCK, "patch_embed.proj cls_token pos_embed head norm pre_logits.fc"),
)

HUGGINGFACE = Format(
    name="Hugging Face (4, as on the Hub)",
    marker=r"encoder\.layer\.0\.attention\.attention\.query\.",
    prepare=lambda arrays: naming.name_bare_model(arrays, "vit."),
    resize_rule="bicubic",
    settings=_huggingface_settings,
    modules=_modules("vit.encoder.layer.{i}.", _HUGGINGFACE_BLOCK, _HUGGINGFACE_OUTSIDE),
)

HUGGINGFACE_5 = dataclasses.replace(
    HUGGINGFACE,
    name="Hugging Face (5)",
    marker=r"layers\.0\.attention\.q_proj\.",
    modules=_modules("vit.layers.{i}.", HUGGINGFACE_5_BLOCK, _HUGGINGFACE_OUTSIDE),
)

# github.com/tintn/vision-transformer-from-scratch with use_faster_attention. It has no final LayerNorm.
TUTORIAL = Format(
    name="vision-transformer-from-scratch",
    marker=r"^embedding\.patch_embeddings\.projection\.weight$",
    prepare=naming.split_qkv,
    modules=_modules(
        "encoder.blocks.{i}.",
        _TUTORIAL_BLOCK,
        "embedding.patch_embeddings.projection embedding.cls_token embedding.position_embeddings classifier",
    ),
)

FORMATS = (GOOGLE, TIMM, HUGGINGFACE, HUGGINGFACE_5, TUTORIAL)


def to_huggingface(model: ViT, variables: Arrays, image_size: tuple[int, int]) -> tuple[Arrays, dict[str, Any]]:
    """Returns the arrays and the model's part of config.json for transformers' ViTForImageClassification.

    UserError if that class cannot compute this model.
    """
    problems = {
        f"position={model.position}": model.position != "learned",
        "pool=average": model.pool != "token",
        "final_norm=False": not model.final_norm,
        "pre_logits": bool(model.pre_logits),
        "no head": not model.num_classes,
    }
    naming.check_expressible("ViTForImageClassification", problems)
    description = {
        "model_type": "vit",
        "hidden_size": model.width,
        "num_hidden_layers": model.depth,
        "intermediate_size": model.mlp_dim,
        **{field: accepted[0] for field, (_, accepted) in _huggingface_settings(model).items()},
        "hidden_dropout_prob": model.dropout,
        "attention_probs_dropout_prob": model.attention_dropout,
        "patch_size": model.patch_size,
        "qkv_bias": True,
    }
    return naming.to_published(variables, HUGGINGFACE, model), description
