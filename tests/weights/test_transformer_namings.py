"""Encoder-decoder checkpoints: every naming is read as the same parameters."""

import numpy as np
import pytest

from attnjax.nn.positions import sinusoids
from tests.weights.encoder_decoders import (
    DEPTH,
    HEADS,
    HIDDEN,
    PAD_LAST,
    SHARED,
    WIDTH,
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
)


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


def test_unknown_naming(tmp_path):
    path = write_file(tmp_path / "a.npz", {"some": np.zeros(1)})
    assert "follow no known naming (Hugging Face's Marian, Marian's npz, fairseq): some" in refused(path, make_model())
