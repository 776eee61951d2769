"""The formats of ViT checkpoints: Google, timm, Hugging Face (both namings), and vision-transformer-from-scratch."""

from typing import Any

from attnjax.models.vit import ViT
from attnjax.weights import naming
from attnjax.weights.files import Arrays
from attnjax.weights.naming import Format, Settings, block_names


def _modules(block: str, in_block: dict[str, str], outside: dict[str, str]):
    """Returns a format's `modules`; `block` is the family's path to block {i}."""

    def modules(model: ViT) -> dict[str, str]:
        blocks = {
            f"block{i}/{ours}": block.format(i=i) + theirs
            for i in range(model.depth)
            for ours, theirs in in_block.items()
        }
        return outside | blocks

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


TIMM_BLOCK = block_names(
    norms="norm1 norm2", attention="attn.query attn.key attn.value attn.proj", mlp="mlp.fc1 mlp.fc2"
)
HUGGINGFACE_5_BLOCK = block_names(
    norms="layernorm_before layernorm_after",
    attention="attention.q_proj attention.k_proj attention.v_proj attention.o_proj",
    mlp="mlp.fc1 mlp.fc2",
)
_HUGGINGFACE_OUTSIDE = {
    "patch_embedding/projection": "vit.embeddings.patch_embeddings.projection",
    "class_token": "vit.embeddings.cls_token",
    "positions/embedding": "vit.embeddings.position_embeddings",
    "final_norm": "vit.layernorm",
    "pre_logits": "vit.pooler.dense",
    "head": "classifier",
}

GOOGLE = Format(
    name="Google's npz",
    marker=r"^(opt/target/|params/img/|params/)?embedding/kernel$",
    prepare=_google_prepare,
    torch=False,
    resize_rule="linear_align_corners",
    modules=_modules(
        "Transformer/encoderblock_{i}/",
        block_names(
            norms="LayerNorm_0 LayerNorm_1",
            attention="MultiHeadDotProductAttention_0/query MultiHeadDotProductAttention_0/key "
            "MultiHeadDotProductAttention_0/value MultiHeadDotProductAttention_0/out",
            mlp="MlpBlock_0/Dense_0 MlpBlock_0/Dense_1",
        ),
        {
            "patch_embedding/projection": "embedding",
            "class_token": "cls",
            "positions/embedding": "pos_embedding",
            "final_norm": "Transformer/encoder_norm",
            "pre_logits": "pre_logits",
            "head": "head",
        },
    ),
)

TIMM = Format(
    name="timm",
    marker=r"^patch_embed\.proj\.weight$",
    prepare=naming.split_qkv,
    modules=_modules(
        "blocks.{i}.",
        TIMM_BLOCK,
        {
            "patch_embedding/projection": "patch_embed.proj",
            "class_token": "cls_token",
            "positions/embedding": "pos_embed",
            "final_norm": "norm",
            "pre_logits": "pre_logits.fc",
            "head": "head",
        },
    ),
)

HUGGINGFACE = Format(
    name="Hugging Face (4, as on the Hub)",
    marker=r"encoder\.layer\.0\.attention\.attention\.query\.",
    prepare=lambda arrays: naming.name_bare_model(arrays, "vit."),
    resize_rule="bicubic",
    settings=_huggingface_settings,
    modules=_modules(
        "vit.encoder.layer.{i}.",
        block_names(
            norms="layernorm_before layernorm_after",
            attention="attention.attention.query attention.attention.key "
            "attention.attention.value attention.output.dense",
            mlp="intermediate.dense output.dense",
        ),
        _HUGGINGFACE_OUTSIDE,
    ),
)

HUGGINGFACE_5 = Format(
    name="Hugging Face (5)",
    marker=r"layers\.0\.attention\.q_proj\.",
    prepare=lambda arrays: naming.name_bare_model(arrays, "vit."),
    resize_rule="bicubic",
    settings=_huggingface_settings,
    modules=_modules(
        "vit.layers.{i}.",
        HUGGINGFACE_5_BLOCK,
        _HUGGINGFACE_OUTSIDE,
    ),
)

# github.com/tintn/vision-transformer-from-scratch with use_faster_attention. It has no final LayerNorm.
TUTORIAL = Format(
    name="vision-transformer-from-scratch",
    marker=r"^embedding\.patch_embeddings\.projection\.weight$",
    prepare=naming.split_qkv,
    modules=_modules(
        "encoder.blocks.{i}.",
        block_names(
            norms="layernorm_1 layernorm_2",
            attention="attention.query_projection attention.key_projection "
            "attention.value_projection attention.output_projection",
            mlp="mlp.dense_1 mlp.dense_2",
        ),
        {
            "patch_embedding/projection": "embedding.patch_embeddings.projection",
            "class_token": "embedding.cls_token",
            "positions/embedding": "embedding.position_embeddings",
            "head": "classifier",
        },
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
