"""The formats of encoder-decoder Transformers: Hugging Face's Marian, Marian's own npz, fairseq.

In all of ours padding is token 0, elsewhere it is not: `read` moves its row to the front of every table. Ids before it
grow by one, those after it stay:

    format        theirs                                    ours                                 a decoder starts from
    opus-mt       eos 0, unk 1, ..., pad V - 1              pad 0, eos 1, unk 2, ...             pad
    Marian's npz  eos 0, unk 1, ..., V - 1; none for pad    pad 0 (zeros), eos 1, unk 2, ...     pad
    fairseq       bos 0, pad 1, eos 2, unk 3, ...           pad 0, bos 1, eos 2, unk 3, ...      eos
"""

import argparse
import dataclasses
import importlib.util
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import yaml
from flax.traverse_util import flatten_dict, unflatten_dict

from attnjax.decoding import Options
from attnjax.errors import UserError
from attnjax.models.transformer import Transformer
from attnjax.nn.positions import sinusoids
from attnjax.weights.files import Arrays, read_arrays, read_description, weights_file
from attnjax.weights.huggingface import save_model
from attnjax.weights.naming import HUGGINGFACE_ACTIVATIONS, Format, check_settings, detect, from_published, to_published

TARGET, SOURCE, OUTPUT = "target_embedding/embedding", "source_embedding/embedding", "output/kernel"
BIAS = "logits_bias"
_FIELDS = {"cross_attention": (("plain",),), "key_size": (0,)}  # of the model: what is fixed in all families
# What equals the target's table, loosest first; see Transformer.tie.
_TIED = {"none": (), "decoder": (OUTPUT,), "all": (OUTPUT, SOURCE)}


@dataclasses.dataclass(frozen=True)
class Family:
    """A format, and what else is to be known of its files."""

    format: Format
    fields: Mapping[str, tuple]  # of the model: what is fixed in the family
    # Ours -> the names it may have, as (V, D), its own before shared ones; the bias is (V,).
    tables: Mapping[str, tuple[str, ...]]
    buffers: Mapping[str, Callable[[np.ndarray], str]]  # not parameters: regular expression -> what is wrong with one
    describe: Callable[[Path, Arrays], Mapping[str, Any]]
    pad: Callable[[Mapping[str, Any]], int | None]  # the row of padding by the description; None: there is none


def read(path: str | Path, model: Transformer) -> dict[str, Any]:
    """Returns the parameters (nested, float32) of a `model` from a file or folder in one of FAMILIES.

    Padding comes first in the tables, as this module's docstring says; for Marian's npz the model's vocabularies have
    one token more than the file. Heads and activation are checked where the file describes them (fairseq's is not
    read). UserError if the file cannot be read, is of no known naming, has other positions, or an output bias that the
    model has not, is described as another computation, or does not fit the model.
    """
    where, arrays = str(path), _read_arrays(path)
    fmt = detect(arrays, [family.format for family in FAMILIES], where)
    (family,) = (family for family in FAMILIES if family.format is fmt)
    _check_fields(family, model)
    description = family.describe(Path(path), arrays)
    check_settings(fmt, model, description, where)
    arrays = fmt.prepare(_drop_buffers(arrays, family, where))
    shapes = _shapes(model)
    arrays = _place_tables(arrays, family, model, family.pad(description), where)
    variables = from_published(arrays, fmt, model, shapes, where)
    variables = {tuple(path.split("/")): jnp.asarray(array, jnp.float32) for path, array in variables.items()}
    return unflatten_dict(variables)["params"]


def to_huggingface(folder: str | Path, model: Transformer, params: Mapping[str, Any]) -> None:
    """Writes what transformers' MarianMTModel.from_pretrained loads: weights, config.json, generation_config.json.

    Ids are ours: pad 0, bos 1 (the decoder starts from it), eos 2. UserError if that class cannot compute this model,
    or the folder holds weights already.
    """
    _check_fields(HUGGINGFACE, model)
    variables = {path: np.asarray(array) for path, array in flatten_dict({"params": params}, sep="/").items()}
    arrays = to_published(variables, HUGGINGFACE.format, model)
    bias = arrays.get("final_logits_bias", np.zeros(model.target_vocabulary, np.float32))
    arrays["final_logits_bias"] = bias[None]  # which that class has in any case
    files = {"config.json": _description(model) | _SPECIAL_IDS, "generation_config.json": _generation(model)}
    save_model(folder, arrays, files)


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
        "encoder_ffn_dim": model.mlp_dim,
        "decoder_ffn_dim": model.mlp_dim,
        "max_position_embeddings": model.max_length,
        "dropout": model.dropout,
        "activation_dropout": model.hidden_dropout,
        "attention_dropout": model.attention_dropout,
    }


def _generation(model):
    """Describes the constraints of our searches: neither padding nor bos in an output, eos at the greatest length."""
    return _SPECIAL_IDS | {"bad_words_ids": [[Options.pad], [Options.bos]], "max_length": model.max_length}


def _read_arrays(path):
    """Reads the arrays; beside fairseq's may lie an argparse.Namespace, a plain record of its options."""
    if weights_file(path).suffix != ".pt" or importlib.util.find_spec("torch") is None:
        return read_arrays(path)
    from torch.serialization import safe_globals

    with safe_globals([argparse.Namespace]):
        return read_arrays(path)


def _shapes(model):
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    variables = jax.eval_shape(model.init, jax.random.key(0), tokens, tokens)
    return {path: struct.shape for path, struct in flatten_dict(variables, sep="/").items()}


def _check_fields(family, model):
    wrong = [
        f"{field}={getattr(model, field)}, not {' or '.join(map(str, accepted))}"
        for field, accepted in {**_FIELDS, **family.fields}.items()
        if getattr(model, field) not in accepted
    ]
    if wrong:
        raise UserError(f"{family.format.name} computes something else than this model, which has {'; '.join(wrong)}")


def _drop_buffers(arrays, family, where):
    """Returns the parameters alone; UserError if what else there is makes them compute something else than ours do."""
    kept = {}
    for name, array in arrays.items():
        problems = [check(array) for pattern, check in family.buffers.items() if re.search(pattern, name)]
        if any(problems):
            raise UserError(f"'{where}': {name} {'; '.join(filter(None, problems))}")
        if not problems:
            kept[name] = array
    return kept


def _place_tables(arrays, family, model, pad, where):
    """Returns arrays with the model's own tables only, by the format's names and with padding first."""
    tables = {}
    for ours, names in family.tables.items():
        if found := [name for name in names if name in arrays]:
            tables[ours] = _pad_first(arrays[found[0]], pad, f"'{where}': {found[0]}")
    modules = family.format.modules(model)
    if not model.output_bias and (largest := np.abs(tables.pop(BIAS, 0)).max()) > 0:
        raise UserError(f"'{where}': {modules[BIAS]} adds up to {largest:.2g} to the logits: use output_bias=True")
    ties = [tie for tie, paths in _TIED.items() if all(_equal(tables, path) for path in paths)]
    if model.tie not in ties:
        raise UserError(f"'{where}' has tables of its own where this model has tie={model.tie}: use tie={ties[-1]}")
    own = {modules[path]: table for path, table in tables.items() if path not in _TIED[model.tie]}
    known = {name for names in family.tables.values() for name in names}
    return {name: array for name, array in arrays.items() if name not in known} | own


def _equal(tables, path):
    return path not in tables or TARGET not in tables or np.array_equal(tables[path], tables[TARGET])


def _pad_first(table, pad, what):
    """Returns a table (V, ...) with the row of padding before the others, or where it has none zeros (V + 1, ...)."""
    if pad is None:
        return np.concatenate([np.zeros_like(table[:1]), table])
    if not 0 <= pad < len(table):
        raise UserError(f"{what} has {len(table)} rows, so padding cannot be token {pad}")
    return np.concatenate([table[pad : pad + 1], np.delete(table, pad, axis=0)])


def _must_be_concatenated_sinusoids(array):
    # Wide enough for half precision; tensor2tensor's frequencies make a difference of 0.09 within 64 positions.
    same = array.ndim == 2 and np.allclose(array, sinusoids(*array.shape, "concatenated"), atol=1e-3)
    return "" if same else "is no table of sinusoids, all sines before all cosines, with frequencies 10000^(-2i/d)"


def _ignored(array):
    return ""


def _attention(ours: str, theirs: str, parts: Mapping[str, str]) -> dict[str, str]:
    return {f"{ours}/{part}": theirs.format(name) for part, name in parts.items()}


def _modules(layer: str, in_encoder: Mapping[str, str], in_decoder: Mapping[str, str], outside):
    """Returns a format's `modules`; `layer` is their path of a layer, {i} from 0 or {n} from 1, of {part}."""

    def modules(model: Transformer) -> dict[str, str]:
        layers = {
            f"{part}_{i}/{ours}": layer.format(part=part, i=i, n=i + 1) + theirs
            for part, depth, inside in (
                ("encoder", model.encoder_depth, in_encoder),
                ("decoder", model.decoder_depth, in_decoder),
            )
            for i in range(depth)
            for ours, theirs in inside.items()
        }
        return outside(model) | layers

    return modules


_TORCH_PARTS = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "out_proj"}
_TORCH_ENCODER = _attention("attention", "self_attn.{}", _TORCH_PARTS) | {
    "norm1": "self_attn_layer_norm",
    "mlp/fc1": "fc1",
    "mlp/fc2": "fc2",
    "norm2": "final_layer_norm",
}
_TORCH_DECODER = {
    **_TORCH_ENCODER,
    **_attention("cross_attention", "encoder_attn.{}", _TORCH_PARTS),
    "norm2": "encoder_attn_layer_norm",
    "norm3": "final_layer_norm",
}


def _huggingface_outside(model):
    target = "model.shared.weight" if model.tie == "all" else "model.decoder.embed_tokens.weight"
    own = {SOURCE: "model.encoder.embed_tokens.weight", OUTPUT: "lm_head.weight", BIAS: "final_logits_bias"}
    return {TARGET: target, **own}


def _huggingface_prepare(arrays: Arrays) -> Arrays:
    """Brings the bias from (1, V) to (V,)."""
    return {name: array.reshape(-1) if name == "final_logits_bias" else array for name, array in arrays.items()}


def _huggingface_settings(model: Transformer):
    heads = (f"num_heads={model.num_heads}", (model.num_heads,))
    return {
        "model_type": ("Marian's architecture", ("marian",)),
        "encoder_attention_heads": heads,
        "decoder_attention_heads": heads,
        "activation_function": (f"activation={model.activation}", HUGGINGFACE_ACTIVATIONS[model.activation]),
        "scale_embedding": ("embeddings times sqrt(width)", (True,)),
    }


def _huggingface_description(path, arrays):
    description = read_description(path)
    if not isinstance(description.get("pad_token_id"), int):
        raise UserError(f"'{path}' needs a config.json beside it that says which token is padding: pad_token_id")
    return description


HUGGINGFACE = Family(
    format=Format(
        name="Hugging Face's Marian",
        marker=r"^model\.encoder\.layers\.0\.self_attn\.q_proj\.weight$",
        modules=_modules("model.{part}.layers.{i}.", _TORCH_ENCODER, _TORCH_DECODER, _huggingface_outside),
        prepare=_huggingface_prepare,
        settings=_huggingface_settings,
    ),
    fields={
        "norm": ("post",),
        "positions": ("concatenated",),
        "epsilon": (1e-5,),
        "activation": tuple(HUGGINGFACE_ACTIVATIONS),
    },
    tables={
        TARGET: ("model.decoder.embed_tokens.weight", "model.shared.weight"),
        SOURCE: ("model.encoder.embed_tokens.weight", "model.shared.weight"),
        OUTPUT: ("lm_head.weight", "model.decoder.embed_tokens.weight", "model.shared.weight"),
        BIAS: ("final_logits_bias",),
    },
    buffers={r"embed_positions\.weight$": _must_be_concatenated_sinusoids},
    describe=_huggingface_description,
    pad=lambda description: description["pad_token_id"],
)


def _fairseq_outside(model):
    return {
        TARGET: "decoder.embed_tokens.weight",
        SOURCE: "encoder.embed_tokens.weight",
        OUTPUT: "decoder.output_projection.weight",
        "source_positions/embedding": "encoder.embed_positions.weight",
        "target_positions/embedding": "decoder.embed_positions.weight",
        "encoder_norm": "encoder.layer_norm",
        "decoder_norm": "decoder.layer_norm",
    }


# Names in old checkpoints -> in new ones.
_FAIRSEQ_RENAMES = {
    r"\.layer_norms\.0\.": ".self_attn_layer_norm.",
    r"(^encoder\..*)\.layer_norms\.1\.": r"\1.final_layer_norm.",
    r"(^decoder\..*)\.layer_norms\.1\.": r"\1.encoder_attn_layer_norm.",
    r"\.layer_norms\.2\.": ".final_layer_norm.",
}
_FAIRSEQ_FIRST_POSITION = 2  # of a learned table; padding has the row before, another is never used


def _fairseq_prepare(arrays: Arrays) -> Arrays:
    """Brings old names to new ones, cuts packed projections (rows q, k, v), and positions that are never used."""
    result = {}
    for name, array in arrays.items():
        for old, new in _FAIRSEQ_RENAMES.items():
            name = re.sub(old, new, name)
        if packed := re.search(r"in_proj_(weight|bias)$", name):
            rows = zip("qkv", np.array_split(array, 3), strict=True)
            result |= {f"{name[: packed.start()]}{part}_proj.{packed[1]}": own for part, own in rows}
        else:
            result[name] = array[_FAIRSEQ_FIRST_POSITION:] if name.endswith("embed_positions.weight") else array
    return result


FAIRSEQ = Family(
    format=Format(
        name="fairseq",
        marker=r"^encoder\.embed_tokens\.weight$",
        modules=_modules("{part}.layers.{i}.", _TORCH_ENCODER, _TORCH_DECODER, _fairseq_outside),
        prepare=_fairseq_prepare,
    ),
    fields={"positions": ("fairseq", "learned"), "epsilon": (1e-5,), "output_bias": (False,)},
    tables={
        TARGET: ("decoder.embed_tokens.weight",),
        SOURCE: ("encoder.embed_tokens.weight",),
        OUTPUT: ("decoder.output_projection.weight", "decoder.embed_out", "decoder.embed_tokens.weight"),
    },
    buffers={r"(^|\.)version$|_float_tensor$|embed_positions\.weights$": _ignored},
    describe=lambda path, arrays: {},
    pad=lambda description: 1,
)

_MARIAN_PARTS = {
    f"{part}/{leaf}": f"{prefix}{letter}"
    for part, letter in {"query": "q", "key": "k", "value": "v", "out": "o"}.items()
    for leaf, prefix in {"kernel": "W", "bias": "b"}.items()
}
_MARIAN_MLP = {
    "mlp/fc1/kernel": "ffn_W1",
    "mlp/fc1/bias": "ffn_b1",
    "mlp/fc2/kernel": "ffn_W2",
    "mlp/fc2/bias": "ffn_b2",
}


def _marian_norm(ours: str, theirs: str) -> dict[str, str]:
    return {f"{ours}/{leaf}": f"{theirs}_ln_{leaf}" for leaf in ("scale", "bias")}


_MARIAN_ENCODER = {
    **_attention("attention", "self_{}", _MARIAN_PARTS),
    **_marian_norm("norm1", "self_Wo"),
    **_MARIAN_MLP,
    **_marian_norm("norm2", "ffn_ffn"),
}
_MARIAN_DECODER = {
    **_MARIAN_ENCODER,
    **_attention("cross_attention", "context_{}", _MARIAN_PARTS),
    **_marian_norm("norm2", "context_Wo"),
    **_marian_norm("norm3", "ffn_ffn"),
}


def _marian_outside(model):
    target = "Wemb" if model.tie == "all" else "decoder_Wemb"
    own = {SOURCE: "encoder_Wemb", OUTPUT: "decoder_ff_logit_out_W", BIAS: "decoder_ff_logit_out_b"}
    return {TARGET: target, **own}


def _marian_prepare(arrays: Arrays) -> Arrays:
    """Brings kernels from (in, out) to torch's (out, in), and vectors from (1, n) to (n,)."""
    vectors = {name: array.reshape(-1) for name, array in arrays.items() if array.shape[:1] == (1,)}
    kernels = {name: array.T for name, array in arrays.items() if name not in vectors and not name.endswith("Wemb")}
    return arrays | vectors | kernels


def _marian_settings(model: Transformer):
    return {
        "type": ("the Transformer's architecture", ("transformer",)),
        "transformer-heads": (f"num_heads={model.num_heads}", (model.num_heads,)),
        "transformer-ffn-activation": (f"activation={model.activation}", (model.activation,)),
        "transformer-preprocess": ("norm=post", ("",)),
        "transformer-postprocess": ("norm=post", ("dan", "an")),
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


MARIAN = Family(
    format=Format(
        name="Marian's npz",
        marker=r"^encoder_l1_self_Wq$",
        modules=_modules("{part}_l{n}_", _MARIAN_ENCODER, _MARIAN_DECODER, _marian_outside),
        prepare=_marian_prepare,
        settings=_marian_settings,
        described_in="special:model.yml",
    ),
    # Positions and epsilon as Hugging Face has them for the same weights. Marian itself has 10000^(-i/(d/2-1)), from
    # position 0, and 1e-6 (src/graph/node_initializers.cpp, src/models/transformer.h).
    fields={
        "norm": ("post",),
        "positions": ("concatenated",),
        "epsilon": (1e-6, 1e-5),
        "activation": ("relu", "swish"),
    },
    tables={
        TARGET: ("decoder_Wemb", "Wemb"),
        SOURCE: ("encoder_Wemb", "Wemb"),
        OUTPUT: ("decoder_ff_logit_out_W", "decoder_Wemb", "Wemb"),
        BIAS: ("decoder_ff_logit_out_b",),
    },
    buffers={r"^special:": _ignored},
    describe=_marian_description,
    pad=lambda description: None,
)

FAMILIES = (HUGGINGFACE, MARIAN, FAIRSEQ)
