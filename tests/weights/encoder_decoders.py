"""Small encoder-decoder checkpoints in every naming, and what both of their test files do with them."""

import json
import re

import numpy as np
import pytest
import safetensors.numpy
from flax.traverse_util import flatten_dict

from attnjax.errors import UserError
from attnjax.models.transformer import Transformer
from attnjax.weights import huggingface
from attnjax.weights import marian as marian_format
from attnjax.weights.transformer import read

V, WIDTH, HEADS, HIDDEN, DEPTH = 11, 8, 2, 12, 2
PAD_LAST = {"pad_token_id": V - 1}
CONFIG = {
    "model_type": "marian",
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "activation_function": "relu",
    "scale_embedding": True,
    "pad_token_id": 0,
}
SHARED = "model.shared.weight"


def make_model(**fields):
    sizes = dict(width=WIDTH, encoder_depth=DEPTH, decoder_depth=DEPTH, num_heads=HEADS, mlp_dim=HIDDEN)
    marian = dict(positions="concatenated", epsilon=1e-5, source_vocabulary=V, target_vocabulary=V)
    return Transformer(**{**sizes, **marian, **fields})


def write(folder, arrays, **description):
    folder.mkdir(exist_ok=True)
    safetensors.numpy.save_file(arrays, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG | description))
    return folder


def write_file(path, arrays):
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        safetensors.numpy.save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path)
    return path


def write_marian(folder, model, params):
    """Writes a Marian without its subwords."""
    files = marian_format.to_huggingface(model, flatten_dict({"params": params}, sep="/"))
    huggingface.save_model(folder, *files)


def assert_reads(path, params, model):
    found = flatten_dict(read(path, model), sep="/")
    assert found.keys() == params.keys()
    for name, array in params.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def refused(path, model):
    with pytest.raises(UserError) as error:
        read(path, model)
    assert "\n" not in str(error.value)
    return str(error.value)


def pad_moved(array, pad):
    """Moves the padding row of a table from the front to `pad`."""
    return np.insert(array[1:], pad, array[0], axis=0)


# As in transformers' convert_marian_to_pytorch.py, which transposes everything except tables.
MARIAN = {
    r"model\.(..coder)\.layers\.0\.": r"\1_l1_",
    r"model\.(..coder)\.layers\.1\.": r"\1_l2_",
    r"encoder_attn_layer_norm\.": "context_Wo_ln_",
    r"self_attn_layer_norm\.": "self_Wo_ln_",
    r"final_layer_norm\.": "ffn_ffn_ln_",
    r"self_attn\.(.)\w*_proj\.": r"self_\1",
    r"encoder_attn\.(.)\w*_proj\.": r"context_\1",
    r"fc(.)\.": r"ffn_\1",
    r"_ln_weight": "_ln_scale",
    r"_(.)weight": r"_W\1",
    r"_(.)bias": r"_b\1",
}


def marian(arrays):
    result = {"Wemb": arrays[SHARED][1:], "decoder_ff_logit_out_b": np.zeros((1, V - 1), np.float32)}
    for name, array in arrays.items():
        for theirs, marians in MARIAN.items():
            name = re.sub(theirs, marians, name)
        if name != SHARED:
            result[name] = array.T if array.ndim == 2 else array[None]
    return result


YML = "type: transformer\ntransformer-heads: 2\ntransformer-ffn-activation: relu\ntransformer-postprocess: dan\n"


def with_yml(arrays, text=YML):
    return arrays | {"special:model.yml": np.frombuffer(text.encode() + b"\0", np.int8)}


FAIRSEQ_IGNORED = {
    "encoder.version": np.array([3.0]),
    "decoder.embed_positions._float_tensor": np.zeros(1, np.float32),
    "encoder.embed_positions.weights": np.zeros((9, WIDTH), np.float32),
}


def fairseq(arrays):
    named = {name.removeprefix("model."): array for name, array in arrays.items() if name != SHARED}
    table = pad_moved(arrays[SHARED], 1)
    tables = {f"{name}.weight": table for name in ("encoder.embed_tokens", "decoder.embed_tokens")}
    return named | tables | FAIRSEQ_IGNORED | {"decoder.output_projection.weight": table}


def separate(arrays, tie):
    """Gives the source a table of its own, and with tie=none the output too."""
    tables = {
        "model.decoder.embed_tokens.weight": arrays[SHARED],
        "model.encoder.embed_tokens.weight": arrays[SHARED][:9],
    }
    if tie == "none":
        tables["lm_head.weight"] = arrays[SHARED] + 1
    return {name: array for name, array in arrays.items() if name != SHARED} | tables
