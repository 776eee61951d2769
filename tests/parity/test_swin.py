"""Swin against Hugging Face's with the same random weights: logits, outputs of every block and stage, all gradients.

Logits agree within 1e-5, feature maps within 1e-5 of their largest entry if that is above 1, gradients within 1e-4 of
the largest entry of each array. Hugging Face's fails if a window is larger than a feature map, so no window here is.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from attnjax import config as config_lib
from attnjax import models
from attnjax.data.images.format import ImageFormat
from attnjax.models.swin import PatchMerging, SwinBlock
from attnjax.nn.positions import resize_grid
from attnjax.weights import huggingface, published, swin
from attnjax.weights.naming import to_published

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

CLASSES = 10
SMALL = dict(patch_size=2, width=16, depths=(2, 2, 2), num_heads=(1, 2, 4))
TINY = dict(width=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24))


def read(path, config):
    return published.read(path, config.model, (*config.data.image_size, config.data.channels))


def make_pair(image_size, folder, randomise, image, **fields):
    """Returns Hugging Face's module, our model, and our variables (flat) read from the module's own files."""
    model = models.build(models.fields("swin", **fields), num_classes=CLASSES)
    described = transformers.SwinConfig(
        image_size=image_size,
        patch_size=model.patch_size,
        embed_dim=model.width,
        depths=model.depths,
        num_heads=model.num_heads,
        window_size=model.window,
        mlp_ratio=model.mlp_ratio,
        use_absolute_embeddings=model.position == "both",
        num_labels=CLASSES,
    )
    module = transformers.SwinForImageClassification(described)
    randomise(module, module.classifier, to_torch(image)).save_pretrained(folder)
    config = config_lib.classification()
    config.model, config.data.image_size = models.fields("swin", **fields), image_size
    return module, model, read(folder, config).variables


def make_image(height, width, batch=2):
    return np.random.default_rng(1).normal(size=(batch, height, width, 3)).astype(np.float32)


def to_torch(image):
    return torch.from_numpy(image.transpose(0, 3, 1, 2).copy())


def by_torch(module, image, label):
    """Returns logits, the feature map of each stage, the outputs of blocks and mergings in order, and gradients."""
    parts = []
    for layer in module.swin.encoder.layers:
        for part in (*layer.blocks, layer.downsample):
            if part is not None:
                part.register_forward_hook(lambda _, __, out: parts.append(out[0] if isinstance(out, tuple) else out))
    out = module(to_torch(image), output_hidden_states=True, output_hidden_states_before_downsampling=True)
    torch.nn.functional.cross_entropy(out.logits, torch.from_numpy(label)).backward()
    maps = [x.detach().numpy().transpose(0, 2, 3, 1) for x in out.reshaped_hidden_states[1:]]  # [0] is the patches
    gradients = {name: p.grad.numpy() for name, p in module.named_parameters()}
    return out.logits.detach().numpy(), maps, [x.detach().numpy() for x in parts], gradients


def by_us(model, variables, image, label):
    """Returns the same, with gradients under Hugging Face's names."""
    params = unflatten_dict({tuple(path.split("/")[1:]): jnp.asarray(array) for path, array in variables.items()})

    def keep(module, method):
        return method == "features" or (isinstance(module, SwinBlock | PatchMerging) and method == "__call__")

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss(params):
        logits, state = model.apply({"params": params}, image, capture_intermediates=keep, mutable=["intermediates"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean(), (logits, state["intermediates"])

    (_, (logits, kept)), gradients = loss(params)
    parts = []
    for stage, depth in enumerate(model.depths, start=1):
        parts += kept[f"stage{stage}_merging"]["__call__"] if stage > 1 else []
        for i in range(depth):
            parts += kept[f"stage{stage}_block{i + 1}"]["__call__"]
    gradients = {path: np.asarray(array) for path, array in flatten_dict({"params": gradients}, sep="/").items()}
    return logits, kept["features"][0], parts, swin.flat_tables(to_published(gradients, swin.HUGGINGFACE_5, model))


def error(ours, theirs):
    """Returns the largest difference, relative to the largest entry if that is above 1."""
    ours = np.asarray(ours).reshape(theirs.shape)
    return np.abs(ours - theirs).max() / max(1, np.abs(theirs).max())


def gradient_errors(ours, theirs):
    """Returns each gradient's largest difference, relative to its largest entry."""
    assert ours.keys() == theirs.keys()
    scale = {name: np.abs(array).max() for name, array in theirs.items()}
    for name in scale:
        if name.endswith("k_proj.bias"):
            scale[name] = max(scale.values())  # exactly 0 but for rounding: softmax is invariant to it
    return {name: np.abs(ours[name] - theirs[name]).max() / scale[name] for name in scale}


@pytest.mark.parametrize(
    ("image_size", "fields"),
    [
        pytest.param((32, 32), SMALL | dict(window=4), id="no padding, the last map is one window"),
        pytest.param((56, 56), SMALL | dict(window=5), id="padding to windows"),
        pytest.param((48, 64), SMALL | dict(window=4, position="both"), id="not square, absolute positions"),
        pytest.param((45, 61), SMALL | dict(window=4), id="padding to patches, merging and windows"),
        pytest.param((224, 224), TINY, id="Swin-T"),
    ],
)
def test_swin_is_hugging_faces(image_size, fields, randomise, tmp_path):
    image, label = make_image(*image_size), np.array([3, 7])
    module, model, variables = make_pair(image_size, tmp_path, randomise, image, **fields)
    their_logits, their_maps, their_parts, their_gradients = by_torch(module, image, label)
    logits, maps, parts, gradients = by_us(model, variables, image, label)

    assert 0.5 < np.abs(their_logits).max() < 10
    errors = {
        "logits": np.abs(logits - their_logits).max(),
        "blocks and mergings": max(error(*pair) for pair in zip(parts, their_parts, strict=True)),
        "pyramid": max(error(*pair) for pair in zip(maps, their_maps, strict=True)),
    }
    relative = gradient_errors(gradients, their_gradients)
    worst = max(relative, key=relative.get)
    said = ", ".join(f"{name} {value:.1e}" for name, value in errors.items())
    print(f"\nparity Swin {image_size} window {model.window}: {said}; gradient {relative[worst]:.1e} {worst}")
    assert len(parts) == sum(model.depths) + len(model.depths) - 1
    assert max(errors.values()) < 1e-5
    assert relative[worst] < 1e-4


def microsoft_names(state):
    """Renames a Hugging Face Swin's arrays as in Microsoft's files, by hand, with the buffers of these."""
    names = {
        "swin.embeddings.patch_embeddings.projection": "patch_embed.proj",
        "swin.embeddings.norm": "patch_embed.norm",
        "swin.embeddings.position_embeddings": "absolute_pos_embed",
        "swin.encoder.": "",
        "layernorm_before": "norm1",
        "layernorm_after": "norm2",
        "attention.o_proj": "attn.proj",
        "attention.relative_position_bias.": "attn.",
        "swin.layernorm": "norm",
        "classifier": "head",
    }
    named = {}
    for name, tensor in state.items():
        for theirs, microsofts in names.items():
            name = name.replace(theirs, microsofts)
        named[name] = tensor
    for name in [name for name in named if "attention.q_proj" in name]:
        parts = [named.pop(name.replace("q_proj", f"{part}_proj")) for part in "qkv"]
        named[name.replace("attention.q_proj", "attn.qkv")] = torch.cat(parts)
    for name in [name for name in named if name.endswith("_table")]:
        named[name.replace("bias_table", "index")] = torch.zeros(3, dtype=torch.int64)
    return named | {"layers.0.blocks.1.attn_mask": torch.zeros(16, 16, 16)}


def timm_names(state):
    """The same for timm since version 0.9: merging belongs to the stage after it."""
    named = {}
    for name, tensor in microsoft_names(state).items():
        parts = name.split(".")
        if parts[2:3] == ["downsample"]:
            name = ".".join(["layers", str(int(parts[1]) + 1), *parts[2:]])
        named[name.replace("head.", "head.fc.")] = tensor
    return named


SMALL_BOTH = SMALL | dict(window=4, position="both")


@pytest.fixture
def pair(randomise, tmp_path):
    image = make_image(32, 32)
    return image, *make_pair((32, 32), tmp_path / "theirs", randomise, image, **SMALL_BOTH)


def test_every_naming_gives_the_same_weights(pair, tmp_path):
    _, module, _, expected = pair
    config = config_lib.classification()
    config.model, config.data.image_size = models.fields("swin", **SMALL_BOTH), (32, 32)
    state = module.state_dict()
    torch.save(state, tmp_path / "five.bin")
    torch.save({"model": microsoft_names(state), "epoch": 3}, tmp_path / "microsoft.pth")
    torch.save(timm_names(state), tmp_path / "timm.pt")
    for file in ("five.bin", "microsoft.pth", "timm.pt"):
        found = read(tmp_path / file, config).variables
        assert found.keys() == expected.keys()
        assert all(np.array_equal(found[path], array) for path, array in expected.items()), file


def test_hugging_face_reads_what_we_write(pair, tmp_path):
    image, module, model, variables = pair
    params = unflatten_dict({tuple(path.split("/")[1:]): array for path, array in variables.items()})
    classes = tuple(f"class {i}" for i in range(CLASSES))
    huggingface.write_classifier(tmp_path / "ours", "swin", model, params, classes, ImageFormat((32, 32)))
    back = transformers.SwinForImageClassification.from_pretrained(tmp_path / "ours").eval()
    assert back.config.id2label == dict(enumerate(classes))
    with torch.no_grad():
        assert torch.equal(back(to_torch(image)).logits, module.eval()(to_torch(image)).logits)
    state = module.state_dict()
    assert back.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in back.state_dict().items())


@pytest.mark.parametrize(("old", "new"), [(7, 12), (12, 7), (7, 4)])
def test_tables_are_resized_as_microsofts_load_pretrained_does(old, new):
    table = np.random.default_rng(0).normal(size=(2 * old - 1, 2 * old - 1, 3)).astype(np.float32)
    theirs = torch.nn.functional.interpolate(
        torch.from_numpy(table).reshape(-1, 3).permute(1, 0).view(1, 3, 2 * old - 1, 2 * old - 1),
        size=(2 * new - 1, 2 * new - 1),
        mode="bicubic",
    )
    ours = resize_grid(table, (2 * new - 1, 2 * new - 1), "bicubic")
    np.testing.assert_allclose(ours.reshape(-1, 3), theirs.view(3, -1).permute(1, 0), atol=1e-5)


@pytest.mark.parametrize("image_size", [(72, 104), (80, 80)])
def test_maps_that_exceed_the_window_along_one_axis(image_size, randomise, tmp_path):
    """18x26, 9x13 and 5x7 patches with a window of 5: neither axis of the last map shifts in Hugging Face's model."""
    fields = SMALL | dict(patch_size=4, window=5)
    image = make_image(*image_size)
    module, model, variables = make_pair(image_size, tmp_path, randomise, image, **fields, shift_rule="shorter_side")
    params = unflatten_dict({tuple(path.split("/")[1:]): array for path, array in variables.items()})
    with torch.no_grad():
        theirs = module(to_torch(image)).logits.numpy()
    assert np.abs(model.apply({"params": params}, image) - theirs).max() < 1e-5
    per_axis = np.abs(model.clone(shift_rule="per_axis").apply({"params": params}, image) - theirs).max()
    assert per_axis > 1e-3 if image_size == (72, 104) else per_axis < 1e-5
