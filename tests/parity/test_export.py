"""What `experiments/convert.py --huggingface` writes, as transformers loads and runs it."""

import jax
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from PIL import Image

from attnjax import models
from attnjax.data.images.format import read_image
from attnjax.tasks.classification import make_image_format
from attnjax.weights import huggingface

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

# Punctuation, case, characters in no subword, spaces that normalization removes.
LINES = ["forty-two", " six  hundred and three ,", "Nine!", "zw\u00f6lf \u4e03", "a" * 20]


@pytest.mark.parametrize("joint", [True, False], ids=["joint", "separate"])
def test_translations_are_the_same_from_text_to_text(joint, translation_experiment, untrained, entry, tmp_path):
    run = untrained(translation_experiment(joint, output_bias=True), tmp_path / "run")
    assert entry("convert", tmp_path / "run", "--huggingface", tmp_path / "out")[0] == 0
    tokenizer = transformers.MarianTokenizer.from_pretrained(tmp_path / "out")
    module, report = transformers.MarianMTModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not (report["missing_keys"] | report["unexpected_keys"])
    assert tokenizer(LINES).input_ids == run.task.encode(LINES)
    target = run.task.vocabulary.target
    assert tokenizer(text_target=LINES).input_ids == [[*ids, 2] for ids in target.encode(LINES)]
    assert len({len(ids) for ids in run.task.encode(LINES)}) > 2

    inputs = tokenizer(LINES, return_tensors="pt", padding=True)
    longest = 10
    found = module.generate(**inputs, do_sample=False, num_beams=1, max_length=longest + 1)
    theirs = tokenizer.batch_decode(found, skip_special_tokens=True)
    lengths = inputs.attention_mask.sum(1).numpy()
    ours = [
        run.task.translate(
            run.variables, [line], beam_size=1, length_penalty="none", extra_length=int(longest - length)
        )[0][0].text
        for line, length in zip(LINES, lengths, strict=True)
    ]
    assert theirs == ours and len(set(ours)) > 1
    assert np.unique(found[:, 0]).tolist() == [1]


@pytest.mark.parametrize(
    "fields",
    [
        {"resize": "stretch", "interpolation": "bicubic", "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
        {"resize": "crop", "crop_fraction": 0.8, "interpolation": "bilinear"},
        {"resize": "stretch", "crop_fraction": 0.8, "std": (0.25,)},
    ],
    ids=["stretched", "cropped", "stretched and cropped"],
)
def test_a_classifier_sees_the_same_images(fields, make_config, random_variables, tmp_path):
    """From a photograph to the logits, with transformers' own image processor."""
    config = make_config(epsilon=1e-12, activation="gelu")
    for name, value in fields.items():
        config.data[name] = value
    image_format = make_image_format(config.data)
    model = models.build(config.model, num_classes=3)
    variables = random_variables(config, 3)
    params = unflatten_dict({tuple(path.split("/")[1:]): array for path, array in variables.items()})
    huggingface.write_classifier(tmp_path / "out", "vit", model, params, ("cat", "dog", "owl"), image_format)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 57, 3), np.uint8)
    photograph = Image.fromarray(pixels).resize((114, 80), Image.Resampling.BICUBIC)
    photograph.save(tmp_path / "a.png")

    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out")
    theirs = processor(photograph, return_tensors="np").pixel_values[0].transpose(1, 2, 0)
    ours = read_image(tmp_path / "a.png", image_format)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    pipeline = transformers.pipeline("image-classification", model=str(tmp_path / "out"))
    found = {row["label"]: row["score"] for row in pipeline(photograph, top_k=3)}
    expected = jax.nn.softmax(model.apply({"params": params}, ours[None])[0])
    np.testing.assert_allclose([found[name] for name in ("cat", "dog", "owl")], expected, atol=1e-5)
