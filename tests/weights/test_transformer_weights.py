"""Encoder-decoder checkpoints: output biases, what is refused, and what is written and read again."""

import json

import numpy as np
import pytest
import safetensors.numpy
from flax.traverse_util import flatten_dict

from attnjax.errors import UserError
from attnjax.nn.positions import sinusoids
from attnjax.weights.transformer import read
from tests.weights.encoder_decoders import (
    CONFIG,
    HIDDEN,
    PAD_LAST,
    SHARED,
    WIDTH,
    YML,
    V,
    assert_reads,
    fairseq,
    make_model,
    marian,
    pad_moved,
    refused,
    separate,
    with_yml,
    write,
    write_file,
    write_marian,
)


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
