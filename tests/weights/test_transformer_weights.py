"""Encoder-decoder checkpoints: every naming is read as the same parameters; mismatches are refused and listed."""

import json
import re

import numpy as np
import pytest
import safetensors.numpy
from flax.traverse_util import flatten_dict

from attnjax.errors import UserError
from attnjax.models.transformer import Transformer
from attnjax.nn.positions import sinusoids
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


@pytest.fixture
def arrays():
    """Random arrays as in Hugging Face's Marian with one shared table."""
    rng = np.random.default_rng(0)
    square, vector = (WIDTH, WIDTH), (WIDTH,)
    attention = {f"{part}_proj": (square, vector) for part in ("q", "k", "v", "out")}
    layers = {"fc1": ((HIDDEN, WIDTH), (HIDDEN,)), "fc2": ((WIDTH, HIDDEN), vector)}
    norms = {"encoder": ("self_attn", "final"), "decoder": ("self_attn", "encoder_attn", "final")}
    shapes = {SHARED: (V, WIDTH)}
    for part in ("encoder", "decoder"):
        inside = {f"{norm}_layer_norm": (vector, vector) for norm in norms[part]} | layers
        inside |= {f"{norm}.{name}": shape for norm in norms[part][:-1] for name, shape in attention.items()}
        for i in range(DEPTH):
            for name, (weight, bias) in inside.items():
                shapes |= {
                    f"model.{part}.layers.{i}.{name}.weight": weight,
                    f"model.{part}.layers.{i}.{name}.bias": bias,
                }
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture
def params(arrays, tmp_path):
    """The same as our parameters, flat; padding comes first in both."""
    return flatten_dict(read(write(tmp_path / "expected", arrays), make_model()), sep="/")


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


def pad_moved(array, pad):
    """Moves the padding row of a table from the front to `pad`."""
    return np.insert(array[1:], pad, array[0], axis=0)


def test_names_map_to_the_right_parameters(arrays, params):
    """Torch's kernels (out, in) are ours transposed and with heads merged."""
    assert len(params) == len(arrays) == 1 + DEPTH * (16 + 26)
    for theirs, ours in {
        "encoder.layers.1.self_attn.q_proj": "encoder_1/attention/query",
        "encoder.layers.0.fc2": "encoder_0/mlp/fc2",
        "decoder.layers.0.self_attn.v_proj": "decoder_0/attention/value",
        "decoder.layers.1.encoder_attn.k_proj": "decoder_1/cross_attention/key",
        "decoder.layers.1.encoder_attn.out_proj": "decoder_1/cross_attention/out",
    }.items():
        kernel, bias = arrays[f"model.{theirs}.weight"], arrays[f"model.{theirs}.bias"]
        np.testing.assert_array_equal(params[f"{ours}/kernel"].reshape(kernel.T.shape), kernel.T)
        np.testing.assert_array_equal(params[f"{ours}/bias"].reshape(-1), bias)
    assert params["encoder_1/attention/query/kernel"].shape == (WIDTH, HEADS, WIDTH // HEADS)
    assert params["decoder_1/cross_attention/out/kernel"].shape == (HEADS, WIDTH // HEADS, WIDTH)
    for theirs, ours in {
        "encoder.layers.0.final_layer_norm": "encoder_0/norm2",
        "decoder.layers.0.self_attn_layer_norm": "decoder_0/norm1",
        "decoder.layers.0.encoder_attn_layer_norm": "decoder_0/norm2",
        "decoder.layers.0.final_layer_norm": "decoder_0/norm3",
    }.items():
        np.testing.assert_array_equal(params[f"{ours}/scale"], arrays[f"model.{theirs}.weight"])
    np.testing.assert_array_equal(params["target_embedding/embedding"], arrays[SHARED])


def test_buffers_and_tables_named_twice(arrays, params, tmp_path):
    table = {part: arrays[SHARED] for part in ("model.encoder.embed_tokens.weight", "lm_head.weight")}
    positions = {f"model.{part}.embed_positions.weight": sinusoids(20, WIDTH, "concatenated") for part in ("encoder",)}
    positions = {name: array.astype(np.float16) for name, array in positions.items()}
    bias = {"final_logits_bias": np.zeros((1, V), np.float32)}
    assert_reads(write(tmp_path / "a", arrays | table | positions | bias), params, make_model())


def test_padding_comes_first(arrays, params, tmp_path):
    folder = write(tmp_path / "a", arrays | {SHARED: pad_moved(arrays[SHARED], V - 1)}, **PAD_LAST)
    assert_reads(folder, params, make_model())


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


def test_marians_npz(arrays, params, tmp_path):
    named = marian(arrays)
    shapes = {
        "Wemb": (V - 1, WIDTH),
        "encoder_l1_self_Wq": (WIDTH, WIDTH),
        "encoder_l1_self_bq": (1, WIDTH),
        "encoder_l2_self_Wo_ln_scale": (1, WIDTH),
        "encoder_l1_ffn_W1": (WIDTH, HIDDEN),
        "encoder_l1_ffn_b1": (1, HIDDEN),
        "encoder_l1_ffn_ffn_ln_bias": (1, WIDTH),
        "decoder_l1_context_Wk": (WIDTH, WIDTH),
        "decoder_l2_context_Wo_ln_bias": (1, WIDTH),
    }
    assert {name: named[name].shape for name in shapes} == shapes
    expected = dict(params)
    expected["target_embedding/embedding"] = np.concatenate([np.zeros((1, WIDTH)), arrays[SHARED][1:]])
    for i, file in enumerate((named, with_yml(named))):
        assert_reads(write_file(tmp_path / f"{i}.npz", file), expected, make_model())
        assert_reads(tmp_path / f"{i}.npz", expected, make_model(epsilon=1e-6))


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


def packed(arrays):
    """Fuses projections and numbers norms as old fairseq did; the output has no name of its own."""
    result = dict(arrays)
    del result["decoder.output_projection.weight"]
    for name in arrays:
        if "q_proj" in name:
            fused = [result.pop(name.replace("q_proj", f"{part}_proj")) for part in "qkv"]
            result[name.replace("q_proj.", "in_proj_")] = np.concatenate(fused)
        for part, norms in {
            "encoder": ("self_attn", "final"),
            "decoder": ("self_attn", "encoder_attn", "final"),
        }.items():
            for i, norm in enumerate(norms):
                if name.startswith(part) and f".{norm}_layer_norm." in name:
                    result[name.replace(f"{norm}_layer_norm", f"layer_norms.{i}")] = result.pop(name)
    return result


@pytest.mark.parametrize("variant", [dict, packed])
def test_fairseq(variant, arrays, params, tmp_path):
    named = variant(fairseq(arrays))
    example = {dict: "q_proj.weight", packed: "in_proj_weight"}[variant]
    assert f"decoder.layers.1.encoder_attn.{example}" in named
    path = write_file(tmp_path / "a.safetensors", named)
    assert_reads(path, params, make_model(positions="fairseq"))


def test_fairseq_with_final_norms_and_learned_positions(arrays, params, tmp_path):
    learned = np.random.default_rng(1).normal(size=(18, WIDTH)).astype(np.float32)
    norm = np.arange(WIDTH, dtype=np.float32)
    extra = {}
    for part, shift in (("encoder", 0), ("decoder", 1)):
        extra |= {f"{part}.embed_positions.weight": learned + shift}
        extra |= {f"{part}.layer_norm.weight": norm + shift, f"{part}.layer_norm.bias": norm - shift}
    path = write_file(tmp_path / "a.safetensors", fairseq(arrays) | extra)
    expected = params | {
        "source_positions/embedding": learned[2:],
        "target_positions/embedding": learned[2:] + 1,
        "encoder_norm/scale": norm,
        "encoder_norm/bias": norm,
        "decoder_norm/scale": norm + 1,
        "decoder_norm/bias": norm - 1,
    }
    assert_reads(path, expected, make_model(positions="learned", norm="pre", max_length=16))


def separate(arrays, tie):
    """Gives the source a table of its own, and with tie=none the output too."""
    tables = {
        "model.decoder.embed_tokens.weight": arrays[SHARED],
        "model.encoder.embed_tokens.weight": arrays[SHARED][:9],
    }
    if tie == "none":
        tables["lm_head.weight"] = arrays[SHARED] + 1
    return {name: array for name, array in arrays.items() if name != SHARED} | tables


@pytest.mark.parametrize("tie", ["decoder", "none"])
def test_separate_tables(tie, arrays, params, tmp_path):
    table = arrays[SHARED]
    expected = params | {"source_embedding/embedding": table[:9]}
    if tie == "none":
        expected["output/kernel"] = table.T + 1
    folder = write(tmp_path / "a", separate(arrays, tie))
    assert_reads(folder, expected, make_model(tie=tie, source_vocabulary=9))
    for tighter in {"decoder": ["all"], "none": ["decoder", "all"]}[tie]:
        assert f"this model ties (tie={tighter}): use tie={tie}" in refused(folder, make_model(tie=tighter))


def test_a_model_may_untie_what_a_file_ties(arrays, params, tmp_path):
    table = arrays[SHARED]
    expected = params | {"source_embedding/embedding": table, "output/kernel": table.T}
    assert_reads(write(tmp_path / "a", arrays), expected, make_model(tie="none"))
    with_zeros = np.concatenate([np.zeros_like(table[:1]), table[1:]])
    expected |= {"source_embedding/embedding": with_zeros, "target_embedding/embedding": with_zeros}
    own_output = marian(arrays) | {"decoder_ff_logit_out_W": table[1:].T + 1}
    expected["output/kernel"] = np.concatenate([np.zeros_like(table[:1]), table[1:] + 1]).T
    assert_reads(write_file(tmp_path / "a.npz", own_output), expected, make_model(tie="none"))


def refused(path, model):
    with pytest.raises(UserError) as error:
        read(path, model)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_does_not_fit_is_listed(arrays, tmp_path):
    del arrays["model.encoder.layers.0.fc1.bias"]
    arrays["model.encoder.layernorm_embedding.weight"] = np.zeros(WIDTH, np.float32)
    name = "model.decoder.layers.1.fc1.weight"
    arrays[name] = np.ascontiguousarray(arrays[name].T)
    message = refused(write(tmp_path / "a", arrays), make_model())
    assert "does not fit the model: 1 missing: model.encoder.layers.0.fc1.bias; " in message
    assert "1 unexpected: model.encoder.layernorm_embedding.weight; " in message
    assert message.endswith(f"1 of the wrong shape: {name} ({WIDTH}, {HIDDEN}) instead of ({HIDDEN}, {WIDTH})")
    message = refused(write_file(tmp_path / "a.npz", marian(arrays)), make_model(encoder_depth=3))
    assert "17 missing: encoder_l1_ffn_b1, encoder_l3_ffn_W1, " in message


BIAS = np.linspace(-1, 0.5, V, dtype=np.float32)


def test_output_biases_follow_the_padding(arrays, params, tmp_path):
    model = make_model(output_bias=True)
    placed = {SHARED: pad_moved(arrays[SHARED], V - 1), "final_logits_bias": pad_moved(BIAS, V - 1)[None]}
    folder = write(tmp_path / "a", arrays | placed, **PAD_LAST)
    assert_reads(folder, params | {"logits_bias": BIAS}, model)
    write_marian(tmp_path / "out", model, read(folder, model))
    assert_reads(tmp_path / "out", params | {"logits_bias": BIAS}, model)

    biased = marian(arrays) | {"decoder_ff_logit_out_b": BIAS[None, 1:]}
    found = read(write_file(tmp_path / "a.npz", biased), model)["logits_bias"]
    assert found.tolist() == [0, *BIAS[1:].tolist()]  # the file has none for padding


def test_output_biases_need_output_bias(arrays, tmp_path):
    message = refused(write(tmp_path / "a", arrays | {"final_logits_bias": BIAS[None]}), make_model())
    assert message.endswith("a': final_logits_bias adds up to 1 to the logits: use output_bias=True")
    biased = marian(arrays) | {"decoder_ff_logit_out_b": np.full((1, V - 1), -2.0, np.float32)}
    message = refused(write_file(tmp_path / "a.npz", biased), make_model())
    assert "decoder_ff_logit_out_b adds up to 2 to the logits" in message
    assert "1 missing: final_logits_bias" in refused(write(tmp_path / "b", arrays), make_model(output_bias=True))


def test_unknown_naming(tmp_path):
    path = write_file(tmp_path / "a.npz", {"some": np.zeros(1)})
    assert "follow no known naming (Hugging Face's Marian, Marian's npz, fairseq): some" in refused(path, make_model())


def test_other_positions_are_refused(arrays, tmp_path):
    others = arrays | {"model.decoder.embed_positions.weight": sinusoids(20, WIDTH, "interleaved")}
    message = refused(write(tmp_path / "b", others), make_model())
    assert (
        "model.decoder.embed_positions.weight does not contain sinusoids of frequencies 10000^(-2i/d), all sines"
        in message
    )


FAMILIES = {
    "Hugging Face's Marian": lambda folder, arrays: write(folder, arrays),
    "Marian's npz": lambda folder, arrays: write_file(folder.with_suffix(".npz"), marian(arrays)),
    "fairseq": lambda folder, arrays: write_file(folder.with_suffix(".safetensors"), fairseq(arrays)),
}


@pytest.mark.parametrize(
    ("family", "fields", "wrong"),
    [
        ("Hugging Face's Marian", dict(positions="interleaved"), "positions=interleaved, not concatenated"),
        ("Hugging Face's Marian", dict(norm="pre", epsilon=1e-6), "norm=pre, not post; epsilon=1e-06, not 1e-05"),
        ("Marian's npz", dict(activation="tanh"), "activation=tanh, not relu or swish"),
        ("fairseq", dict(), "positions=concatenated, not fairseq or learned"),
        ("fairseq", dict(positions="fairseq", output_bias=True), "output_bias=True, not False"),
        ("fairseq", dict(positions="fairseq", key_size=3), "key_size=3, not 0"),
        ("Marian's npz", dict(cross_attention=("gated",)), "cross_attention=('gated',), not ('plain',)"),
    ],
)
def test_a_model_that_computes_something_else_is_refused(family, fields, wrong, arrays, tmp_path):
    path = FAMILIES[family](tmp_path / "a", arrays)
    message = refused(path, make_model(**fields))
    assert message == f"{family} does not compute this model, which has {wrong}"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_type", "bart"),
        ("encoder_attention_heads", 4),
        ("decoder_attention_heads", 4),
        ("activation_function", "gelu"),
        ("encoder_ffn_dim", HIDDEN + 1),
        ("decoder_ffn_dim", HIDDEN + 1),
        ("scale_embedding", False),
    ],
)
def test_a_config_that_describes_another_computation_is_refused(field, value, arrays, tmp_path):
    message = refused(write(tmp_path / "a", arrays, **{field: value}), make_model())
    assert f"config.json says {field}={value!r}, but this model has" in message


def test_padding_must_be_known(arrays, tmp_path):
    folder = write(tmp_path / "a", arrays, pad_token_id=58100)
    assert f"{SHARED} has {V} rows, so padding cannot be token 58100" in refused(folder, make_model())
    (folder / "config.json").unlink()
    assert "needs a config.json beside it with pad_token_id" in refused(folder, make_model())


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("heads: 2", "heads: 8", "special:model.yml says transformer-heads=8, but this model has num_heads=2"),
        ("activation: relu", "activation: swish", "says transformer-ffn-activation='swish', but"),
        ("postprocess: dan", "preprocess: n", "says transformer-preprocess='n', but this model has norm=post"),
        ("type: transformer", "type: [", "special:model.yml is damaged"),
    ],
)
def test_the_description_in_a_marian_npz_is_checked(old, new, message, arrays, tmp_path):
    assert old in YML
    path = write_file(tmp_path / "a.npz", with_yml(marian(arrays), YML.replace(old, new)))
    assert message in refused(path, make_model())


@pytest.mark.parametrize("tie", ["all", "decoder", "none"])
def test_written_for_hugging_face_and_read_again(tie, arrays, tmp_path):
    source = V if tie == "all" else 9
    model = make_model(tie=tie, source_vocabulary=source, dropout=0.2, max_length=77)
    read_back = write(tmp_path / "theirs", arrays if tie == "all" else separate(arrays, tie))
    params = read(read_back, model)
    write_marian(tmp_path / "out", model, params)
    assert_reads(tmp_path / "out", flatten_dict(params, sep="/"), model)
    written = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
    assert written.keys() - safetensors.numpy.load_file(read_back / "model.safetensors").keys() == {"final_logits_bias"}
    described = json.loads((tmp_path / "out" / "config.json").read_text())
    assert described.items() >= {**CONFIG, "dropout": 0.2, "max_position_embeddings": 77, "vocab_size": source}.items()
    assert (described["bos_token_id"], described["eos_token_id"], described["decoder_start_token_id"]) == (1, 2, 1)
    with pytest.raises(UserError, match=r"already holds a model\.safetensors"):
        write_marian(tmp_path / "out", model, params)


@pytest.mark.parametrize("fields", [{"norm": "pre"}, {"positions": "interleaved"}, {"epsilon": 1e-6}])
def test_what_hugging_face_cannot_express_is_refused(fields, tmp_path):
    ((field, value),) = fields.items()
    with pytest.raises(UserError, match=f"Hugging Face's Marian does not compute this model.* {field}={value}, not"):
        write_marian(tmp_path / "out", make_model(**fields), {})
    assert not (tmp_path / "out").exists()
