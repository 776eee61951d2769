"""How images become inputs is read from published files and written to them; labels and image sizes in odd forms."""

import json

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from attnjax.data.images.format import ImageFormat
from attnjax.errors import UserError
from attnjax.runs.experiment import Experiment
from attnjax.runs.folder import open_run
from attnjax.runs.initialise import initialise
from attnjax.weights import preprocessing, published

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
MEAN_STD = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def read(folder, settings, description=None):
    safetensors.numpy.save_file({"a": np.zeros(1, np.float32)}, folder / "model.safetensors")
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return preprocessing.read(folder, description or {})


def resizing(resize, size, fraction=1.0, interpolation="bicubic"):
    return {"resize": resize, "image_size": size, "crop_fraction": fraction, "interpolation": interpolation}


# As published beside google/vit-base-patch16-224, facebook/deit-base-patch16-224, microsoft/resnet-50, and CLIP's way.
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            {"feature_extractor_type": "ViTFeatureExtractor", "size": 224, "resample": 2, "do_resize": True}
            | {"do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3},
            {"mean": (0.5,) * 3, "std": (0.5,) * 3} | resizing("stretch", (224, 224), interpolation="bilinear"),
        ),
        (
            IMAGENET
            | {"feature_extractor_type": "DeiTFeatureExtractor", "size": 256, "crop_size": 224, "resample": 3}
            | {"do_center_crop": True, "do_normalize": True, "do_resize": True},
            MEAN_STD | resizing("stretch", (224, 224), 0.875),
        ),
        (
            IMAGENET
            | {"feature_extractor_type": "ConvNextFeatureExtractor", "size": 224, "crop_pct": 0.875, "resample": 3},
            MEAN_STD | resizing("crop", (224, 224), 0.875),
        ),
        (
            IMAGENET
            | {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 384}, "resample": 3},
            MEAN_STD | resizing("stretch", (384, 384)),
        ),
        (
            IMAGENET
            | {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 256}, "do_center_crop": True}
            | {"crop_size": {"height": 224, "width": 224}, "resample": 3, "rescale_factor": 0.00392156862745098},
            MEAN_STD | resizing("crop", (224, 224), 0.875),
        ),
        ({"do_normalize": False, "do_resize": False}, {"mean": (0.0,), "std": (1.0,)}),
        ({"image_mean": [127.5], "image_std": [51.0], "do_rescale": False}, {"mean": (0.5,), "std": (0.2,)}),
        ({}, {}),
    ],
)
def test_hugging_faces_settings(settings, expected, tmp_path):
    assert read(tmp_path, settings) == expected


def test_timms_settings(tmp_path):
    cfg = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "interpolation": "bicubic", "crop_pct": 0.9}
    cfg |= {"crop_mode": "center", "input_size": [3, 224, 224]}
    expected = MEAN_STD | resizing("crop", (224, 224), 0.9)
    assert read(tmp_path, {}, {"architecture": "vit_base_patch16_224", "pretrained_cfg": cfg}) == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": {"shortest_edge": 224}}, "with do_center_crop=False is not a resizing"),
        ({"size": {"height": 8, "width": 8}, "resample": 1}, "interpolation lanczos is not one of"),
        ({"size": {"longest_edge": 8}}, "is not understood: KeyError"),
        ({"image_mean": ["a"], "image_std": [1]}, "is not understood: ValueError"),
        ({"image_mean": [0.5, 0.5], "image_std": [1]}, "mean has 2 values"),
        ({"image_mean": [0.5], "image_std": [0]}, "std is .*: it should be positive"),
    ],
)
def test_settings_that_cannot_be_followed_are_one_line(settings, message, tmp_path):
    with pytest.raises(UserError, match=message) as error:
        read(tmp_path, settings)
    assert "\n" not in str(error.value) and "preprocessor_config.json'" in str(error.value)


@pytest.mark.parametrize(
    ("image_format", "processor"),
    [
        (ImageFormat((32, 16), resize="stretch", mean=(0.1,), interpolation="nearest"), "ViTImageProcessor"),
        (ImageFormat((28, 28), resize="stretch", crop_fraction=0.875), "DeiTImageProcessor"),
        (
            ImageFormat((8, 8), crop_fraction=0.8, interpolation="bicubic", std=(0.1, 0.2, 0.3)),
            "CLIPImageProcessor",
        ),
        (ImageFormat((32, 32), channels=1), "CLIPImageProcessor"),
    ],
)
def test_what_is_written_is_read_again(image_format, processor, tmp_path):
    name, settings = preprocessing.to_huggingface(image_format)
    assert name == processor
    found = read(tmp_path, settings)
    again = ImageFormat(**found, channels=image_format.channels)
    sides = [side * np.ones(image_format.channels) for side in (image_format.mean, image_format.std)]
    assert np.array_equal([again.mean, again.std], sides)
    for field in ("image_size", "resize", "crop_fraction", "interpolation"):
        assert getattr(again, field) == getattr(image_format, field)


@settings(derandomize=True, database=None, deadline=None, max_examples=40)
@given(
    side=st.integers(1, 40),
    resize=st.sampled_from(["crop", "stretch"]),
    fraction=st.floats(0.3, 1.0),
    interpolation=st.sampled_from(["nearest", "bilinear", "bicubic"]),
)
def test_the_same_pixels_are_seen(side, resize, fraction, interpolation):
    ours = ImageFormat((side, side), resize=resize, crop_fraction=fraction, interpolation=interpolation)
    _, settings = preprocessing.to_huggingface(ours)
    theirs = ImageFormat(**preprocessing._from_huggingface(settings))
    image = np.random.default_rng(side).integers(0, 256, (23, 31, 3), np.uint8)
    np.testing.assert_array_equal(theirs.fit(image), ours.fit(image))


def test_no_processor_crops_to_a_shape_that_is_not_square():
    assert preprocessing.to_huggingface(ImageFormat((32, 16))) == ("", {})


def files(make_config, named, folder):
    """Writes Hugging Face's weights of three classes, with images normalised as for ImageNet; returns their config."""
    config = make_config(depth=1)
    arrays, _ = named("Hugging Face (4", config)
    safetensors.numpy.save_file(arrays, folder / "model.safetensors")
    size = {"size": {"height": 16, "width": 16}, "resample": 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(IMAGENET | size))
    return config


CONFIG = """
from attnjax import config as config_lib
from attnjax import models

def get_config():
    config = config_lib.classification()
    config.model = models.fields("vit", patch_size=4, width=8, depth=1, num_heads=2, mlp_dim=12)
    config.data.image_size = (24, 24)
    return config
"""


def test_a_run_of_imported_weights_sees_their_images(make_config, named, entry, tmp_path):
    files(make_config, named, tmp_path)
    (tmp_path / "config.py").write_text(CONFIG)
    options = ("--config", tmp_path / "config.py", "--workdir", tmp_path / "run", "--config.data.std=(0.2,)")
    code, said, _ = entry("convert", tmp_path, *options)
    assert code == 0
    assert "data.mean (0.5,) -> (0.485, 0.456, 0.406), as beside the weights\n" in said
    assert "data.image_size (24, 24) -> (16, 16), as" in said
    assert "data.std (0.2,) kept, not (0.229, 0.224, 0.225), as" in said
    data = open_run(tmp_path / "run").config.data
    assert (data.mean, data.std, data.resize, data.interpolation, data.image_size) == (
        *((0.485, 0.456, 0.406), (0.2,), "stretch", "bicubic"),
        (16, 16),
    )


def test_a_run_from_weights_says_where_its_images_differ(make_config, named, tmp_path):
    config = files(make_config, named, tmp_path)
    config.data.mean, config.data.std = MEAN_STD["mean"], (0.5,)
    config.data.interpolation, config.init_from = "bicubic", str(tmp_path)
    state = Experiment.classifier(config, ("a", "b", "c")).state_shapes()
    _, report = initialise(state, config)
    assert report == [
        "the weights saw other images: data.std (0.229, 0.224, 0.225), here (0.5,); data.resize stretch, here crop"
    ]


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ({"id2label": {"first": "cat"}}, "id2label in config.json should be like"),
        ({"id2label": 3}, "id2label in config.json should be like"),
        ({"image_size": "16"}, "config.json says image_size='16'; it should be one number"),
        ({"image_size": [16, 16, 3]}, r"image_size=\[16, 16, 3\]"),
        ({"image_size": -16}, "image_size=-16"),
    ],
)
def test_odd_descriptions_are_one_line(description, message, make_config, named, tmp_path):
    config = files(make_config, named, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"} | description))
    with pytest.raises(UserError, match=message) as error:
        published.read(tmp_path, config.model, (16, 16, 3))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("description", "classes"),
    [
        ({"model_type": "vit", "id2label": {"0": "cat", "2": "owl", "1": "dog"}}, ("cat", "dog", "owl")),
        ({"model_type": "vit", "id2label": ["cat", "dog", "owl"]}, ("cat", "dog", "owl")),
        ({"pretrained_cfg": {}, "label_names": ["cat", "dog", "owl"]}, ("cat", "dog", "owl")),
        ({"model_type": "vit", "id2label": {"1": "cat", "2": "dog", "3": "owl"}}, None),
        ({"model_type": "vit", "id2label": {"0": "LABEL_0", "1": "LABEL_1"}}, None),
    ],
)
def test_labels_are_read(description, classes, make_config, named, tmp_path):
    config = files(make_config, named, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(description))
    assert published.read(tmp_path, config.model, (16, 16, 3)).classes == classes
