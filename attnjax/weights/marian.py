"""The formats of Marian's Transformers: as converted for Hugging Face's MarianMTModel, and Marian's own npz."""

from typing import Any

import numpy as np
import yaml

from attnjax.decoding import Options
from attnjax.errors import UserError
from attnjax.models.transformer import Transformer
from attnjax.nn.positions import sinusoids
from attnjax.weights import transformer_family as base
from attnjax.weights.files import Arrays, read_description
from attnjax.weights.naming import HUGGINGFACE_ACTIVATIONS, Format, Settings, to_published, within


def _must_be_concatenated_sinusoids(array: np.ndarray) -> str:
    # The tolerance admits half precision; tensor2tensor's frequencies differ by 0.09 within 64 positions.
    same = array.ndim == 2 and np.allclose(array, sinusoids(len(array), array.shape[1], "concatenated"), atol=1e-3)
    return "" if same else "does not contain sinusoids of frequencies 10000^(-2i/d), all sines before all cosines"


def _huggingface_prepare(arrays: Arrays) -> Arrays:
    """Reshapes the output bias: (1, V) -> (V,)."""
    return {name: array.reshape(-1) if name == "final_logits_bias" else array for name, array in arrays.items()}


def _huggingface_settings(model: Transformer) -> Settings:
    heads = (f"num_heads={model.num_heads}", (model.num_heads,))
    return {
        "model_type": ("Marian's architecture", ("marian",)),
        "encoder_attention_heads": heads,
        "decoder_attention_heads": heads,
        "encoder_ffn_dim": (f"mlp_dim={model.mlp_dim} in encoder and decoder", (model.mlp_dim,)),
        "decoder_ffn_dim": (f"mlp_dim={model.mlp_dim} in encoder and decoder", (model.mlp_dim,)),
        "activation_function": (f"activation={model.activation}", HUGGINGFACE_ACTIVATIONS[model.activation]),
        "scale_embedding": ("embeddings times sqrt(width)", (True,)),
    }


def _huggingface_description(path, arrays):
    description = read_description(path)
    if not isinstance(description.get("pad_token_id"), int):
        raise UserError(f"'{path}' needs a config.json beside it with pad_token_id, the padding token")
    return description


_FIELDS = {"norm": ("post",), "positions": ("concatenated",)}  # of both formats
_HUGGINGFACE_TABLES = {
    base.TARGET: ("model.decoder.embed_tokens.weight", "model.shared.weight"),
    base.SOURCE: ("model.encoder.embed_tokens.weight", "model.shared.weight"),
    base.OUTPUT: ("lm_head.weight", "model.decoder.embed_tokens.weight", "model.shared.weight"),
    base.BIAS: ("final_logits_bias",),
}
HUGGINGFACE = base.Family(
    format=Format(
        name="Hugging Face's Marian",
        marker=r"^model\.encoder\.layers\.0\.self_attn\.q_proj\.weight$",
        modules=base.modules("model.{part}.layers.{i}.", base.TORCH_ENCODER, base.TORCH_DECODER, _HUGGINGFACE_TABLES),
        prepare=_huggingface_prepare,
        settings=_huggingface_settings,
    ),
    fields={**_FIELDS, "epsilon": (1e-5,), "activation": tuple(HUGGINGFACE_ACTIVATIONS)},
    tables=_HUGGINGFACE_TABLES,
    buffers={r"embed_positions\.weight$": _must_be_concatenated_sinusoids},
    describe=_huggingface_description,
    pad=lambda description: description["pad_token_id"],
)


def to_huggingface(model: Transformer, variables: Arrays) -> tuple[Arrays, dict[str, dict[str, Any]]]:
    """Returns the arrays, and the contents of config.json and generation_config.json, for transformers' MarianMTModel.

    Token ids are ours: pad 0, bos 1 (the decoder starts from it), eos 2. UserError if that class cannot compute this
    model.
    """
    HUGGINGFACE.check(model)
    arrays = to_published(variables, HUGGINGFACE.format, model)
    bias = arrays.get("final_logits_bias", np.zeros(model.target_vocabulary, np.float32))
    arrays["final_logits_bias"] = bias[None]  # MarianMTModel always has one
    # The constraints of our searches: no padding or bos in an output, eos at the maximum length.
    generation = _SPECIAL_IDS | {"bad_words_ids": [[Options.pad], [Options.bos]], "max_length": model.max_length}
    return arrays, {"config.json": _description(model) | _SPECIAL_IDS, "generation_config.json": generation}


_SPECIAL_IDS = {
    "pad_token_id": Options.pad,
    "bos_token_id": Options.bos,
    "eos_token_id": Options.eos,
    "decoder_start_token_id": Options.bos,
    "forced_eos_token_id": Options.eos,
}


def _description(model):
    return {
        "architectures": ["MarianMTModel"],
        "dtype": "float32",
        "is_encoder_decoder": True,
        **{field: accepted[0] for field, (_, accepted) in _huggingface_settings(model).items()},
        "vocab_size": model.source_vocabulary,
        "decoder_vocab_size": model.target_vocabulary,
        "share_encoder_decoder_embeddings": model.tie == "all",
        "tie_word_embeddings": model.tie != "none",
        "d_model": model.width,
        "encoder_layers": model.encoder_depth,
        "decoder_layers": model.decoder_depth,
        "max_position_embeddings": model.max_length,
        "dropout": model.dropout,
        "activation_dropout": model.hidden_dropout,
        "attention_dropout": model.attention_dropout,
    }


_MARIAN_ATTENTION = {
    f"{part}/{leaf}": f"{prefix}{letter}"
    for part, letter in {"query": "q", "key": "k", "value": "v", "out": "o"}.items()
    for leaf, prefix in {"kernel": "W", "bias": "b"}.items()
}
_MARIAN_MLP = {"fc1/kernel": "W1", "fc1/bias": "b1", "fc2/kernel": "W2", "fc2/bias": "b2"}
_MARIAN_NORM = {"scale": "ln_scale", "bias": "ln_bias"}
_MARIAN_ENCODER = {
    **within("attention/", "self_", _MARIAN_ATTENTION),
    **within("norm1/", "self_Wo_", _MARIAN_NORM),
    **within("mlp/", "ffn_", _MARIAN_MLP),
    **within("norm2/", "ffn_ffn_", _MARIAN_NORM),
}
_MARIAN_DECODER = {
    **_MARIAN_ENCODER,
    **within("cross_attention/", "context_", _MARIAN_ATTENTION),
    **within("norm2/", "context_Wo_", _MARIAN_NORM),
    **within("norm3/", "ffn_ffn_", _MARIAN_NORM),
}


def _marian_prepare(arrays: Arrays) -> Arrays:
    """Converts kernels to torch's layout, (in, out) -> (out, in), and vectors (1, N) -> (N,)."""
    vectors = {name: array.reshape(-1) for name, array in arrays.items() if array.shape[:1] == (1,)}
    kernels = {name: array.T for name, array in arrays.items() if name not in vectors and not name.endswith("Wemb")}
    return arrays | vectors | kernels


def _marian_settings(model: Transformer) -> Settings:
    return {
        "type": ("the Transformer's architecture", ("transformer",)),
        "transformer-heads": (f"num_heads={model.num_heads}", (model.num_heads,)),
        "transformer-ffn-activation": (f"activation={model.activation}", (model.activation,)),
        "transformer-preprocess": ("norm=post, as all that are read from Marian's npz", ("",)),
        "transformer-postprocess": ("norm=post, as all that are read from Marian's npz", ("dan", "an")),
        "transformer-dim-ffn": (f"mlp_dim={model.mlp_dim} in encoder and decoder", (model.mlp_dim,)),
        "transformer-decoder-dim-ffn": (f"mlp_dim={model.mlp_dim} in encoder and decoder", (model.mlp_dim, 0)),
        "transformer-decoder-autoreg": ("self-attention in the decoder", ("self-attention",)),
        "transformer-train-position-embeddings": ("sinusoidal positions", (False,)),
        "right-left": ("targets from left to right", (False,)),
    }


def _marian_description(path, arrays):
    text = arrays.get("special:model.yml", np.zeros(0, np.int8)).astype(np.uint8).tobytes()
    try:
        description = yaml.safe_load(text.rstrip(b"\0"))
    except yaml.YAMLError as error:
        raise UserError(f"'{path}': special:model.yml is damaged: {str(error).splitlines()[0]}") from error
    return description if isinstance(description, dict) else {}


_MARIAN_TABLES = {
    base.TARGET: ("decoder_Wemb", "Wemb"),
    base.SOURCE: ("encoder_Wemb", "Wemb"),
    base.OUTPUT: ("decoder_ff_logit_out_W", "decoder_Wemb", "Wemb"),
    base.BIAS: ("decoder_ff_logit_out_b",),
}
MARIAN = base.Family(
    format=Format(
        name="Marian's npz",
        marker=r"^encoder_l1_self_Wq$",
        modules=base.modules("{part}_l{n}_", _MARIAN_ENCODER, _MARIAN_DECODER, _MARIAN_TABLES),
        prepare=_marian_prepare,
        settings=_marian_settings,
        described_in="special:model.yml",
    ),
    # Positions and epsilon follow Hugging Face's conversion of such files. Marian itself uses frequencies
    # 10000^(-i/(d/2-1)) from position 0 and 1e-6 (src/graph/node_initializers.cpp, src/models/transformer.h).
    fields={**_FIELDS, "epsilon": (1e-6, 1e-5), "activation": ("relu", "swish")},
    tables=_MARIAN_TABLES,
    buffers={r"^special:": lambda array: ""},  # with any content
    describe=_marian_description,
    pad=lambda description: None,
)
