"""Published checkpoints: every naming is read as the same variables; mismatches are refused and listed."""

import json
import re

import numpy as np
import pytest
import safetensors.numpy
from flax.traverse_util import unflatten_dict

from attnjax import config as config_lib
from attnjax import models
from attnjax.errors import UserError
from attnjax.tasks.classification import make_image_format
from attnjax.weights import huggingface, published, resnet
from attnjax.weights.naming import to_published


def read(path, config):
    return published.read(path, config.model, (*config.data.image_size, config.data.channels))


def assert_reads(path, config, variables):
    found = read(path, config).variables
    assert found.keys() == variables.keys()
    for name, array in variables.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def pre_linen(arrays):
    numbers = {
        "LayerNorm_1": "LayerNorm_2",
        "MultiHeadDotProductAttention_0": "MultiHeadDotProductAttention_1",
        "MlpBlock_0": "MlpBlock_3",
        "pos_embedding": "Transformer/posembed_input/pos_embedding",
    }
    return {re.sub("|".join(numbers), lambda m: numbers[m[0]], name): array for name, array in arrays.items()}


def stacked(arrays):
    result = {name: array for name, array in arrays.items() if "encoderblock" not in name}
    for name in arrays:
        if "encoderblock_0/" in name:
            layers = [arrays[name.replace("block_0/", f"block_{i}/")] for i in range(2)]
            result[name.replace("encoderblock_0/", "encoderblock/")] = np.stack(layers)
    return result


GOOGLE_VARIANTS = {
    "linen": dict,
    "pre-linen": pre_linen,
    "training": lambda arrays: {f"opt/target/{n}": x for n, x in pre_linen(arrays).items()} | {"opt/state/step": 3},
    "big_vision": lambda arrays: {f"params/{name}": array for name, array in arrays.items()},
    "two towers": lambda arrays: {f"params/img/{n}": x for n, x in arrays.items()} | {"params/txt/a": 1, "params/t": 2},
    "stacked": lambda arrays: {f"params/{name}": array for name, array in stacked(arrays).items()},
}


@pytest.mark.parametrize("variant", GOOGLE_VARIANTS)
def test_google_npz(variant, make_config, named, tmp_path):
    arrays, variables = named("Google", make_config())
    np.savez(tmp_path / "a.npz", **GOOGLE_VARIANTS[variant](arrays))
    assert_reads(tmp_path / "a.npz", make_config(), variables)


def test_google_names_are_those_of_the_published_file(make_config, named):
    arrays, _ = named("Google", make_config(pre_logits=8))
    block = "Transformer/encoderblock_1/"
    expected = {
        "embedding/kernel": (4, 4, 3, 8),
        "cls": (1, 1, 8),
        "Transformer/posembed_input/pos_embedding": (1, 17, 8),
        f"{block}LayerNorm_0/scale": (8,),
        f"{block}MultiHeadDotProductAttention_1/query/kernel": (8, 2, 4),
        f"{block}MultiHeadDotProductAttention_1/query/bias": (2, 4),
        f"{block}MultiHeadDotProductAttention_1/out/kernel": (2, 4, 8),
        f"{block}LayerNorm_2/bias": (8,),
        f"{block}MlpBlock_3/Dense_0/kernel": (8, 12),
        f"{block}MlpBlock_3/Dense_1/kernel": (12, 8),
        "Transformer/encoder_norm/bias": (8,),
        "pre_logits/kernel": (8, 8),
        "head/kernel": (8, 3),
    }
    shapes = {name: array.shape for name, array in pre_linen(arrays).items()}
    assert len(shapes) == 3 + 16 * 2 + 1 + 2 + 4
    assert expected.items() <= shapes.items()


def fuse_qkv(arrays):
    """Undoes split_qkv."""
    parts = {name for name in arrays if re.search("query|key|value", name)}
    fused = {
        name.replace("query", "qkv"): np.concatenate(
            [arrays[name.replace("query", p)] for p in ("query", "key", "value")]
        )
        for name in parts
        if "query" in name
    }
    return {name: array for name, array in arrays.items() if name not in parts} | fused


@pytest.mark.parametrize("name", ["timm", "vision-transformer-from-scratch"])
def test_fused_projections(name, make_config, named, tmp_path):
    config = make_config(final_norm=name == "timm")
    arrays, variables = named(name, config)
    arrays = fuse_qkv(arrays)
    assert any(re.search(r"qkv\w*\.weight", key) and array.shape == (24, 8) for key, array in arrays.items())
    safetensors.numpy.save_file(arrays, tmp_path / "a.safetensors")
    assert_reads(tmp_path / "a.safetensors", config, variables)


@pytest.mark.parametrize("version", ["Hugging Face (4", "Hugging Face (5"])
def test_hugging_face(version, make_config, named, tmp_path):
    config = make_config(pre_logits=8)
    arrays, variables = named(version, config)
    safetensors.numpy.save_file(arrays, tmp_path / "model.safetensors")
    assert_reads(tmp_path, config, variables)

    bare = {name.removeprefix("vit."): array for name, array in arrays.items() if not name.startswith("classifier")}
    safetensors.numpy.save_file(bare, tmp_path / "bare.safetensors")
    headless = {path: array for path, array in variables.items() if "/head/" not in path}
    assert_reads(tmp_path / "bare.safetensors", config, headless)


@pytest.mark.parametrize("fmt", resnet.FORMATS, ids=lambda fmt: fmt.name)
@pytest.mark.parametrize("bottleneck", [False, True])
def test_resnet(fmt, bottleneck, random_variables, tmp_path):
    config = config_lib.classification()
    fields = dict(blocks=(1, 2), features=(8, 16), bottleneck=bottleneck, stem="imagenet", project=True)
    config.model = models.fields("resnet", **fields)
    variables = random_variables(config, 3)
    arrays = to_published(variables, fmt, models.build(config.model, num_classes=3))
    arrays |= {re.sub("running_mean$", "num_batches_tracked", name): np.array(7) for name in arrays if "mean" in name}
    safetensors.numpy.save_file(arrays, tmp_path / "a.safetensors")
    assert_reads(tmp_path / "a.safetensors", config, variables)


def refused(path, config):
    with pytest.raises(UserError) as error:
        read(path, config)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_does_not_fit_is_listed(make_config, named, tmp_path):
    arrays, _ = named("timm", make_config())
    arrays = fuse_qkv(arrays)
    for name in [name for name in arrays if name.startswith("blocks.1.")]:
        del arrays[name]
    arrays["norm.weight"] = np.zeros(9, np.float32)
    arrays["dist_token"] = np.zeros((1, 1, 8), np.float32)
    safetensors.numpy.save_file(arrays, tmp_path / "a.safetensors")
    message = refused(tmp_path / "a.safetensors", make_config())
    assert "a.safetensors' does not fit the model: 16 missing: blocks.1.attn.key.bias, " in message
    assert ", ...; 1 unexpected: dist_token; 1 of the wrong shape: norm.weight (9,) instead of (8,)" in message


def test_transposed_kernels_of_equal_size_are_not_taken(make_config, named, tmp_path):
    arrays, _ = named("Hugging Face (4", make_config())
    name = "vit.encoder.layer.0.intermediate.dense.weight"
    arrays[name] = np.ascontiguousarray(arrays[name].T)
    safetensors.numpy.save_file(arrays, tmp_path / "a.safetensors")
    message = refused(tmp_path / "a.safetensors", make_config())
    assert f"1 of the wrong shape: {name} (8, 12) instead of (12, 8)" in message


def test_a_model_of_another_size_is_refused(make_config, named, tmp_path):
    arrays, _ = named("Google", make_config())
    np.savez(tmp_path / "a.npz", **arrays)
    assert "of the wrong shape: " in refused(tmp_path / "a.npz", make_config(width=16))
    assert "16 missing: " in refused(tmp_path / "a.npz", make_config(depth=3))
    assert "unexpected: Transformer/encoder_norm/bias" in refused(tmp_path / "a.npz", make_config(final_norm=False))
    assert "unexpected: cls" in refused(tmp_path / "a.npz", make_config(pool="average"))


def test_unknown_naming_and_model(make_config, tmp_path):
    np.savez(tmp_path / "a.npz", some=np.zeros(1))
    assert "follow no known naming (Google's npz, timm, Hugging Face" in refused(tmp_path / "a.npz", make_config())
    config = config_lib.classification()
    config.model = models.fields("mlp")
    assert "no published weights are known for model 'mlp'" in refused(tmp_path / "a.npz", config)


def test_a_config_that_describes_another_computation_is_refused(make_config, named, tmp_path):
    arrays, _ = named("Hugging Face (4", make_config())
    safetensors.numpy.save_file(arrays, tmp_path / "model.safetensors")
    right = {"model_type": "vit", "hidden_act": "gelu_new", "layer_norm_eps": 1e-6, "num_attention_heads": 2}
    wrong = {"hidden_act": "gelu", "layer_norm_eps": 1e-12, "num_attention_heads": 4}
    (tmp_path / "config.json").write_text(json.dumps(right))
    read(tmp_path, make_config())
    for field, value in wrong.items():
        (tmp_path / "config.json").write_text(json.dumps(right | {field: value}))
        assert f"config.json says {field}={value!r}, but this model has" in refused(tmp_path, make_config())


def write(folder, config, variables, classes=("cat", "dog", "owl")):
    params = unflatten_dict({tuple(path.split("/")[1:]): array for path, array in variables.items()})
    model = models.build(config.model, num_classes=len(classes))
    return huggingface.write_classifier(folder, "vit", model, params, classes, make_image_format(config.data))


def test_written_for_hugging_face_and_read_again(make_config, random_variables, tmp_path):
    config = make_config(image_size=(16, 8))
    config.data.resize = "stretch"
    variables = random_variables(config, 3)
    assert write(tmp_path / "out", config, variables) == "ViTForImageClassification and ViTImageProcessor"
    assert_reads(tmp_path / "out", config, variables)
    weights = read(tmp_path / "out", config)
    assert (weights.classes, weights.image_size) == (("cat", "dog", "owl"), (16, 8))
    with pytest.raises(UserError, match=r"already holds a model\.safetensors"):
        write(tmp_path / "out", config, variables)


@pytest.mark.parametrize(
    "fields", [{"position": "none"}, {"pool": "average"}, {"final_norm": False}, {"pre_logits": 8}]
)
def test_what_hugging_face_cannot_express_is_refused(fields, make_config, random_variables, tmp_path):
    config = make_config(**fields)
    with pytest.raises(UserError, match=f"cannot express this model: {next(iter(fields))}"):
        write(tmp_path / "out", config, random_variables(config, 3))
    assert not (tmp_path / "out").exists()
