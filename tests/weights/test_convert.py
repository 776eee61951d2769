"""experiments/convert.py: published weights to a run folder, and a run folder to Hugging Face weights."""

import json

import jax
import numpy as np
import pytest

from attnjax import config as config_lib
from attnjax import models
from attnjax.runs.experiment import Experiment
from attnjax.runs.folder import open_run
from attnjax.weights import published, transformer

CONFIG = """
from attnjax import config as config_lib
from attnjax import models

def get_config():
    config = config_lib.classification()
    config.model = models.fields("vit", patch_size=4, width=8, depth=1, num_heads=2, mlp_dim=12)
    config.data.image_size = (16, 16)
    return config
"""


@pytest.fixture
def files(make_config, named, tmp_path):
    """Returns a config file, a weights file of three classes, and its variables."""
    arrays, variables = named("Google", make_config(depth=1))
    (tmp_path / "config.py").write_text(CONFIG)
    np.savez(tmp_path / "a.npz", **arrays)
    return tmp_path / "config.py", tmp_path / "a.npz", variables


def test_weights_become_a_run_and_a_run_becomes_hugging_face_weights(files, process, entry, make_config, tmp_path):
    config, weights, variables = files
    workdir, out = tmp_path / "run", tmp_path / "out"
    started = process("convert", weights, "--config", config, "--workdir", workdir, "--classes", "cat,dog,owl")
    said, errors = started.communicate(timeout=120)
    assert (started.returncode, errors) == (0, "")
    assert "run: vit of 3 classes" in said
    opened = open_run(workdir)
    assert (opened.step, opened.task.classes) == (0, ("cat", "dog", "owl"))
    np.testing.assert_array_equal(opened.params["class_token"], variables["params/class_token"])

    code, said, _ = entry("convert", workdir, "--huggingface", out)
    readers = "ViTForImageClassification and CLIPImageProcessor"
    assert (code, said) == (0, f"{out}: weights of step 0 for transformers' {readers}\n")
    again = published.read(out, make_config(depth=1).model, (16, 16, 3))
    assert again.classes == ("cat", "dog", "owl")
    assert all(np.array_equal(again.variables[path], array) for path, array in variables.items())


def test_positions_are_resized_and_classes_numbered(files, entry, tmp_path):
    config, weights, _ = files
    options = ("--workdir", tmp_path / "run", "--config.data.image_size=(24,24)")
    code, said, _ = entry("convert", weights, "--config", config, *options)
    assert code == 0
    assert "positions resized 4x4 -> 6x6 (linear_align_corners)\n" in said
    assert json.loads((tmp_path / "run" / "classes.json").read_text()) == ["0", "1", "2"]


def test_a_run_is_never_overwritten(files, entry, tmp_path):
    config, weights, _ = files
    (tmp_path / "run" / "checkpoints" / "7").mkdir(parents=True)
    (tmp_path / "run" / "config.json").write_text("mine")
    code, _, err = entry("convert", weights, "--config", config, "--workdir", tmp_path / "run")
    assert (code, err) == (2, f"error: '{tmp_path}/run' already holds a run; choose another --workdir\n")
    assert (tmp_path / "run" / "config.json").read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--config.model.depth=3"], "does not fit the model: 32 missing"),
        (["--classes", "cat,dog"], "--classes names 2 classes"),
        (["--config.model.wdith=3"], "did you mean 'width'?"),
        (["--huggingface", "out"], "leave other options out"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(options, message, files, entry, tmp_path):
    config, weights, _ = files
    code, _, err = entry("convert", weights, "--config", config, "--workdir", tmp_path / "run", *options)
    assert (code, err.count("\n")) == (2, 1)
    assert message in err
    assert not (tmp_path / "run").exists()


def test_a_direction_is_required(files, entry):
    config, weights, _ = files
    code, _, err = entry("convert", weights, "--config", config)
    assert (code, err.count("\n")) == (2, 1)
    assert "say what to write" in err


def test_weights_without_a_head_are_for_training(files, make_config, named, entry, tmp_path):
    config, _, _ = files
    arrays, _ = named("Google", make_config(depth=1))
    np.savez(tmp_path / "a.npz", **{name: array for name, array in arrays.items() if "head" not in name})
    code, _, err = entry("convert", tmp_path / "a.npz", "--config", config, "--workdir", tmp_path / "run")
    assert (code, err.count("\n")) == (2, 1)
    assert "has no head to evaluate" in err


def test_a_swin_is_written_for_hugging_face(untrained, entry, tmp_path):
    config = config_lib.classification()
    small = dict(patch_size=2, width=4, depths=(2, 1), num_heads=(1, 2), window=3)
    config.model, config.data.image_size = models.fields("swin", **small), (16, 16)
    run = untrained(Experiment.classifier(config, ("cat", "dog")), tmp_path / "run")
    code, said, _ = entry("convert", tmp_path / "run", "--huggingface", tmp_path / "out")
    assert (code, said.split("transformers' ")[1]) == (0, "SwinForImageClassification and CLIPImageProcessor\n")
    again = published.read(tmp_path / "out", config.model, (16, 16, 3))
    assert again.classes == ("cat", "dog")
    kernel = again.variables["params/stage1_block2/attention/query/kernel"]
    np.testing.assert_array_equal(kernel, run.params["stage1_block2"]["attention"]["query"]["kernel"])


@pytest.mark.parametrize("joint", [True, False], ids=["joint", "separate"])
def test_a_translator_is_written_for_hugging_face_with_its_subwords(
    joint, translation_experiment, untrained, entry, tmp_path
):
    run = untrained(translation_experiment(joint), tmp_path / "run")
    out = tmp_path / "out"
    code, said, _ = entry("convert", tmp_path / "run", "--huggingface", out)
    readers = "MarianMTModel and MarianTokenizer (whose beam search has no length_penalty=gnmt)"
    assert (code, said.split("transformers' ")[1]) == (0, f"{readers}\n")
    jax.tree.map(np.testing.assert_array_equal, transformer.read(out, run.model), run.params)
    vocabulary = run.task.vocabulary
    for side in ("source", "target"):
        subwords = (out / f"{side}.spm").read_bytes()
        assert subwords == (tmp_path / "run" / "vocabulary" / f"{'joint' if joint else side}.model").read_bytes()
    ids = json.loads((out / "vocab.json").read_text())
    assert [ids[piece] for piece in ("<pad>", "<s>", "</s>", "<unk>")] == [0, 1, 2, 3]
    assert [ids[piece] for piece in vocabulary.source.encode("forty-two", out_type=str)] == vocabulary.source.encode(
        "forty-two"
    )
    assert (out / "target_vocab.json").exists() is not joint
    described = json.loads((out / "tokenizer_config.json").read_text())
    assert (described["source_lang"], described["target_lang"], described["model_max_length"]) == ("en", "de", 64)


TRANSLATOR = """
from attnjax import config as config_lib
from attnjax import models

def get_config():
    config = config_lib.translation()
    fields = {fields}
    config.model = models.fields("transformer", **fields)
    config.data.languages = ("de", "en")
    config.data.batching.max_length = 64
    return config
"""


@pytest.mark.parametrize("joint", [True, False], ids=["joint", "separate"])
def test_a_written_translator_becomes_the_same_run_again(joint, translation_experiment, untrained, entry, tmp_path):
    experiment = translation_experiment(joint)
    decoding = {"beam_size": 3, "length_penalty": "average", "alpha": 0.5, "early_stopping": True, "min_length": 2}
    experiment.config.decoding.update(decoding | {"no_repeat_ngram": 3})
    run = untrained(Experiment.from_config(experiment.config, tmp_path / "nowhere"), tmp_path / "run")
    assert entry("convert", tmp_path / "run", "--huggingface", tmp_path / "out")[0] == 0
    fields = {name: value for name, value in experiment.config.model.items() if name != "name"}
    (tmp_path / "config.py").write_text(TRANSLATOR.replace("{fields}", repr(fields)))
    given = "--config.decoding.score_forced_eos=True"
    code, said, _ = entry(
        "convert", tmp_path / "out", "--config", tmp_path / "config.py", "--workdir", tmp_path / "again", given
    )
    assert code == 0
    for line in (
        "decoding.beam_size 4 -> 3, as beside the weights",
        "decoding.length_penalty gnmt -> average, as beside the weights",
        "decoding.score_forced_eos True kept, not False, as beside the weights",
        "data.languages ('de', 'en') -> ('en', 'de'), as beside the weights",
    ):
        assert f"{line}\n" in said
    again = open_run(tmp_path / "again")
    assert again.config.decoding == run.config.decoding
    jax.tree.map(np.testing.assert_array_equal, again.params, run.params)
    for side in ("source", "target"):
        old, new = (getattr(found.task.vocabulary, side).serialized_model_proto() for found in (run, again))
        assert old == new
    assert again.task.vocabulary.joint == joint

    ids = json.loads((tmp_path / "out" / "vocab.json").read_text())
    (tmp_path / "out" / "vocab.json").write_text(json.dumps(ids | {"<pad>": 59, "<s>": 0}))
    code, _, err = entry("convert", tmp_path / "out", "--config", tmp_path / "config.py", "--workdir", tmp_path / "b")
    assert (code, err.count("\n")) == (2, 1) and "numbers subwords in another way than attnjax" in err


def test_a_model_without_a_hugging_face_class_is_refused(translation_experiment, untrained, entry, tmp_path):
    untrained(translation_experiment(norm="pre"), tmp_path / "pre")
    config = config_lib.classification()
    config.model, config.data.image_size = models.fields("lenet"), (32, 32)
    untrained(Experiment.classifier(config, ("cat", "dog")), tmp_path / "lenet")
    for run, message in (
        ("pre", "Hugging Face's Marian does not compute this model, which has norm=pre, not post"),
        ("lenet", "Hugging Face's formats are not written for lenet, only for: vit, swin, transformer"),
    ):
        code, _, err = entry("convert", tmp_path / run, "--huggingface", tmp_path / "out")
        assert (code, err.count("\n")) == (2, 1) and message in err
    assert not (tmp_path / "out").exists()
