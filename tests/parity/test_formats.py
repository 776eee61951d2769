"""Published files as their own libraries write and read them: Hugging Face, timm, torchvision, torch."""

import argparse
import json

import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from attnjax import config as config_lib
from attnjax import models
from attnjax.data.images.format import ImageFormat
from attnjax.errors import UserError
from attnjax.weights import huggingface, published
from attnjax.weights.files import read_arrays

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

CLASSES = ("cat", "dog", "owl")


def make_config(name="vit", **fields):
    config = config_lib.classification()
    config.model = models.fields(name, **fields)
    config.data.image_size = (16, 16)
    return config


VIT = make_config(patch_size=4, width=48, depth=2, num_heads=4, mlp_dim=96, activation="gelu", epsilon=1e-12)


@pytest.fixture
def module(randomise):
    """A small Hugging Face ViT with three named classes."""
    described = transformers.ViTConfig(
        image_size=16,
        patch_size=4,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        id2label=dict(enumerate(CLASSES)),
        label2id={name: i for i, name in enumerate(CLASSES)},
    )
    module = transformers.ViTForImageClassification(described)
    return randomise(module, module.classifier, torch.randn(2, 3, 16, 16))


def read(path, config):
    return published.read(path, config.model, (*config.data.image_size, config.data.channels))


def assert_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


def write(weights, folder):
    params = unflatten_dict({tuple(path.split("/")[1:]): array for path, array in weights.variables.items()})
    model = models.build(VIT.model, num_classes=weights.num_classes)
    huggingface.write_classifier(folder, "vit", model, params, weights.classes, ImageFormat((16, 16)))


def test_hugging_face_to_ours_and_back_is_exact(module, tmp_path):
    module.save_pretrained(tmp_path / "theirs")
    weights = read(tmp_path / "theirs", VIT)
    assert (weights.classes, weights.num_classes, weights.image_size) == (CLASSES, 3, (16, 16))
    write(weights, tmp_path / "ours")
    assert_equal(read_arrays(tmp_path / "ours"), read_arrays(tmp_path / "theirs"))

    back = transformers.ViTForImageClassification.from_pretrained(tmp_path / "ours")
    assert back.config.id2label == dict(enumerate(CLASSES))
    image = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(back.eval()(image).logits, module.eval()(image).logits)
    for name, tensor in module.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor), name


def test_our_logits_are_those_of_the_exported_model(module, tmp_path):
    module.save_pretrained(tmp_path / "theirs")
    weights = read(tmp_path / "theirs", VIT)
    write(weights, tmp_path / "ours")
    back = transformers.ViTForImageClassification.from_pretrained(tmp_path / "ours").eval()
    image = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)
    variables = unflatten_dict({tuple(path.split("/")): array for path, array in weights.variables.items()})
    ours = models.build(VIT.model, num_classes=3).apply(variables, image)
    theirs = back(torch.from_numpy(image.transpose(0, 3, 1, 2).copy())).logits.detach()
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def timm_names(arrays):
    """Names Hugging Face's arrays (version 5) as timm does, by hand."""
    outside = {
        "vit.embeddings.cls_token": "cls_token",
        "vit.embeddings.position_embeddings": "pos_embed",
        "vit.embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
        "vit.embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
        "vit.layernorm.weight": "norm.weight",
        "vit.layernorm.bias": "norm.bias",
        "classifier.weight": "head.weight",
        "classifier.bias": "head.bias",
    }
    named = {outside[name]: array for name, array in arrays.items() if name in outside}
    for i in range(2):
        theirs, ours = f"vit.layers.{i}.", f"blocks.{i}."
        for leaf in ("weight", "bias"):
            named[f"{ours}norm1.{leaf}"] = arrays[f"{theirs}layernorm_before.{leaf}"]
            qkv = [arrays[f"{theirs}attention.{part}_proj.{leaf}"] for part in "qkv"]
            named[f"{ours}attn.qkv.{leaf}"] = torch.cat(qkv)
            named[f"{ours}attn.proj.{leaf}"] = arrays[f"{theirs}attention.o_proj.{leaf}"]
            named[f"{ours}norm2.{leaf}"] = arrays[f"{theirs}layernorm_after.{leaf}"]
            named[f"{ours}mlp.fc1.{leaf}"] = arrays[f"{theirs}mlp.fc1.{leaf}"]
            named[f"{ours}mlp.fc2.{leaf}"] = arrays[f"{theirs}mlp.fc2.{leaf}"]
    return named


def test_every_naming_gives_the_same_weights(module, tmp_path):
    module.save_pretrained(tmp_path / "hub")
    assert any("encoder.layer.0.attention.attention.query" in name for name in read_arrays(tmp_path / "hub"))
    expected = read(tmp_path / "hub", VIT).variables

    five = module.state_dict()
    assert any("layers.0.attention.q_proj" in name for name in five)
    torch.save(five, tmp_path / "five.bin")
    torch.save({"model": timm_names(five), "epoch": 3}, tmp_path / "timm.pth")
    for file in ("five.bin", "timm.pth"):
        assert_equal(read(tmp_path / file, VIT).variables, expected)


def test_bare_model_has_no_head(module, tmp_path):
    module.vit.save_pretrained(tmp_path)
    weights = read(tmp_path, VIT)
    assert weights.num_classes == 0
    assert not any("head" in path for path in weights.variables)


@pytest.mark.parametrize("width", [torch.float16, torch.bfloat16])
def test_half_precision_files_are_read_as_float32(module, width, tmp_path):
    module.to(width).save_pretrained(tmp_path)
    torch.save(module.state_dict(), tmp_path / "model.pt")
    (tmp_path / "config.json").rename(tmp_path / "other.json")
    ours = read(tmp_path / "model.safetensors", VIT).variables
    assert {array.dtype for array in ours.values()} == {np.dtype(np.float32)}
    assert_equal(ours, read(tmp_path / "model.pt", VIT).variables)


def test_torchvision_names_are_read(randomise, tmp_path):
    described = transformers.ResNetConfig(
        embedding_size=64, hidden_sizes=[64, 128], depths=[1, 2], layer_type="basic", num_labels=3
    )
    module = transformers.ResNetForImageClassification(described)
    randomise(module, module.classifier[1], torch.randn(2, 3, 32, 32)).save_pretrained(tmp_path)
    names = {
        "resnet.embedder.embedder.convolution": "conv1",
        "resnet.embedder.embedder.normalization": "bn1",
        "encoder.stages.0.layers.": "layer1.",
        "encoder.stages.1.layers.": "layer2.",
        "shortcut.convolution": "downsample.0",
        "shortcut.normalization": "downsample.1",
        "layer.0.convolution": "conv1",
        "layer.0.normalization": "bn1",
        "layer.1.convolution": "conv2",
        "layer.1.normalization": "bn2",
        "resnet.": "",
        "classifier.1": "fc",
    }
    state = {}
    for name, tensor in module.state_dict().items():
        for theirs, torchvisions in names.items():
            name = name.replace(theirs, torchvisions)
        state[name] = tensor
    torch.save(state, tmp_path / "torchvision.pth")
    config = make_config("resnet", blocks=(1, 2), features=(64, 128), stem="imagenet", project=True)
    expected = read(tmp_path, config).variables
    assert_equal(read(tmp_path / "torchvision.pth", config).variables, expected)


class Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_no_pickled_code_is_executed(tmp_path):
    torch.save({"weight": Touch(tmp_path / "harm")}, tmp_path / "model.pt")
    with pytest.raises(UserError, match=r"model\.pt' contains io\.open, not only tensors; it is not opened"):
        read_arrays(tmp_path / "model.pt")
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("content", [b"", b"not weights", b"PK\x03\x04 cut short"])
def test_damaged_torch_file_is_one_line(content, tmp_path):
    (tmp_path / "model.pt").write_bytes(content)
    with pytest.raises(UserError, match=r"model\.pt' is damaged") as error:
        read_arrays(tmp_path / "model.pt")
    assert "\n" not in str(error.value)


def test_a_state_dict_must_contain_tensors(tmp_path):
    torch.save({"weight": 3}, tmp_path / "model.pt")
    with pytest.raises(UserError, match="not a state dict"):
        read_arrays(tmp_path / "model.pt")


def test_a_config_that_describes_another_computation_is_refused(module, tmp_path):
    module.save_pretrained(tmp_path)
    described = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(described | {"hidden_act": "gelu_new"}))
    with pytest.raises(UserError, match="hidden_act='gelu_new', but this model has activation=gelu"):
        read(tmp_path, VIT)


# Torch files: what is taken, and what is refused


def save(path, content):
    torch.save(content, path)
    return path


def refused(path):
    with pytest.raises(UserError) as error:
        read_arrays(path)
    message = str(error.value)
    assert "\n" not in message and "\x1b" not in message and "weights_only" not in message
    return message


def test_averaged_weights_are_taken_and_the_others_can_be_chosen(tmp_path, caplog):
    states = {
        name: {"w": torch.full((2,), float(i))} for i, name in enumerate(("state_dict", "state_dict_ema", "mine"))
    }
    path = save(tmp_path / "a.pth", states | {"epoch": 3})
    assert read_arrays(path)["w"].tolist() == [1, 1]
    assert (
        f"'{path}' has state_dict_ema, state_dict and mine: taking state_dict_ema; '{path}:state_dict'" in caplog.text
    )
    caplog.clear()
    for i, name in enumerate(states):
        assert read_arrays(f"{path}:{name}")["w"].tolist() == [i, i]
    assert not caplog.records
    assert "has no state dict 'state_dct', did you mean 'state_dict'" in refused(f"{path}:state_dct")


def test_options_beside_the_weights_are_plain_data(tmp_path):
    path = save(tmp_path / "a.pt", {"args": argparse.Namespace(layers=2), "model": {"w": torch.ones(2)}})
    assert read_arrays(path)["w"].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"hello, world " * 9, "is damaged, or not a torch file"),
        (b"", "is damaged, or not a torch file"),
        (torch.nn.Linear(2, 2), "contains torch.nn.modules.linear.Linear, not only tensors; it is not opened"),
        ({"w": torch.zeros(3).to_sparse()}, "w is a sparse tensor: save the weights as dense ones"),
        ({"w": torch.zeros(3, device="meta")}, "w is a meta tensor"),
        ("quantised", "w is a quantised tensor"),
        ({"w": 3}, "is not a state dict of named tensors"),
        ([torch.zeros(2)], "is not a state dict of named tensors"),
    ],
    ids=["text", "empty", "module", "sparse", "meta", "quantised", "numbers", "list"],
)
@pytest.mark.filterwarnings("ignore")
def test_what_is_no_state_dict_of_plain_tensors(content, message, tmp_path):
    path = tmp_path / "a.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        quantised = content == "quantised"
        save(path, {"w": torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8)} if quantised else content)
    assert message in refused(path)
