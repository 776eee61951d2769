"""The entry points as a user of captioning runs them, on squares of a few colours."""

import json
import math
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from attnjax import config as config_lib
from attnjax import models
from attnjax.data.images.pipeline import eval_batch
from attnjax.metrics.cider import cider
from attnjax.runs import loop
from attnjax.runs.experiment import Experiment
from attnjax.runs.folder import open_run

CONFIG = Path(__file__).parent.parent / "configs" / "flickr8k_captioner.py"
# One width of batches, so that there is one step to compile; dropout and augmentation on, as a stop must not lose them.
TINY = {
    "steps": 60,
    "epochs": 100.0,
    "log_every": 20,
    "eval_every": 60,
    "save_every": 40,
    "keep_checkpoints": 3,
    "model.encoder.width": 16,
    "model.encoder.mlp_dim": 16,
    "model.encoder.num_heads": 2,
    "model.encoder.depth": 1,
    "model.text.width": 16,
    "model.text.mlp_dim": 16,
    "model.text.num_heads": 2,
    "model.text.decoder_depth": 1,
    "model.text.max_length": 16,
    "data.image_size": "(16, 16)",
    "data.augment.flip": "true",
    "data.vocabulary.size": 40,
    "data.batching.max_tokens": 256,
    "data.batching.max_length": 16,
    "data.batching.shapes": 1,
    "decoding.extra_length": 12,
    "optimizer.learning_rate": 1e-2,
    "optimizer.warmup_steps": 5,
}
COLORS = {"red": (220, 30, 30), "green": (30, 220, 30), "blue": (30, 30, 220)}
SPLITS = {"train": 24, "dev": 6, "test": 9}


pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Returns a folder of images of one colour each, of many sizes, with two captions that name it."""
    folder = tmp_path_factory.mktemp("photos")
    for split, count in SPLITS.items():
        rows = []
        for i in range(count):
            color, file = list(COLORS)[i % 3], f"{split}/{i}.png"
            (folder / split).mkdir(exist_ok=True)
            Image.new("RGB", (20 + i, 30), COLORS[color]).save(folder / file)
            rows += [f"{file}\tA {color} square .\n", f"{file}\t{color} all over\n"]
        (folder / f"{split}.tsv").write_text("".join(rows))
    return folder


def make_config(photos):
    config = config_lib.load(str(CONFIG))
    config_lib.override(config, {name: str(value) for name, value in TINY.items()}.items())
    config.data.source = f"captions:{photos}"
    return config


@pytest.fixture(scope="module")
def trained(tmp_path_factory, photos):
    """The run folder that the tests below look into."""
    workdir = tmp_path_factory.mktemp("runs") / "trained"
    loop.train(make_config(photos), workdir)
    return workdir


@pytest.fixture(scope="module")
def run(trained):
    return open_run(trained)


# Training


def test_a_run_says_what_it_does_and_learns_to_look(trained, rows):
    log = (trained / "train.log").read_text()
    for line in ("24 images with 48 texts, captions:", "reads       image, image-en", "rows x tokens: 16x16"):
        assert line in log
    assert rows(trained)[-1]["nll"] < rows(trained)[0]["nll"] - 1
    (validation,) = rows(trained, "validation")
    assert {"cider", "bleu", "bleu1", "accuracy", "loss"} < validation.keys() and validation["cider"] > 1
    assert validation["perplexity"] == pytest.approx(math.exp(validation["loss"]))


def test_a_stopped_run_goes_on_to_the_same_bits(trained, entry, tmp_path, rows):
    workdir = tmp_path / "stopped"
    shutil.copytree(trained, workdir)
    shutil.rmtree(workdir / "checkpoints" / "60")
    code, out, err = entry("train", "--workdir", workdir)
    assert code == 0 and "resumed from step 40" in out, err
    one, other = open_run(trained, "latest"), open_run(workdir, "latest")
    assert one.step == other.step == 60
    jax.tree.map(np.testing.assert_array_equal, one.params, other.params)
    assert rows(workdir)[-1] == rows(trained)[-1] and rows(workdir, "validation") == rows(trained, "validation")


@pytest.fixture
def task(photos, tmp_path):
    return Experiment.from_config(make_config(photos), tmp_path).task


def take(task, count):
    batches = task.batches()
    found = [next(batches) for _ in range(count)]
    batches.close()
    return found


def test_a_caption_has_the_image_it_is_of(task, monkeypatch):
    """In more than an epoch of training batches, and the same when two processes share them."""
    seen, whole = 0, take(task, 5)
    assert task.steps_per_epoch == 3
    for batch in whole:
        for tokens, image, real in zip(batch["target"], batch["image"], batch["mask"], strict=True):
            if real:
                text = task.vocabulary.target.decode([int(t) for t in tokens if t > 2])
                expected = COLORS[next(color for color in COLORS if color in text)]
                # Augmentation moves the border of a square, not its middle.
                np.testing.assert_allclose(image[8, 8], expected, atol=1)
                seen += 1
    assert seen >= 48 + 32
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    shares = []
    for process in (0, 1):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        shares.append(take(task, 5))
    for batch, *parts in zip(whole, *shares, strict=True):
        for name, array in batch.items():
            np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), array)


# Measuring


@pytest.fixture(scope="module")
def described(run, photos):
    """The captions of the test split, one image at a time."""
    source = run.task.data.open("test")
    shown = eval_batch(source.images, np.arange(len(source)), run.task.image_format)["image"]
    images = run.task.image_format.normalise(shown)
    return [run.task.describe(run.variables, 1, lambda index, i=i: images[[i] * len(index)])[0] for i in range(9)]


def test_evaluate_describes_each_image_whatever_its_company(trained, photos, described, entry, tmp_path):
    code, out, err = entry("evaluate", "--workdir", trained)
    assert code == 0 and "9 images, 18 texts, best checkpoint" in out, err
    result = json.loads((trained / "evaluation_test.json").read_text())
    lines = [json.loads(line) for line in (trained / "evaluation_test.jsonl").read_text().splitlines()]
    assert [line["image"] for line in lines] == [f"{photos}/test/{i}.png" for i in range(9)]
    found = [line["text"] for line in lines]
    assert found == [candidates[0].text for candidates in described] and len(set(found)) > 1
    references = [[f"a {color} square", f"{color} all over"] for color in list(COLORS) * 3]
    assert result["cider"] == pytest.approx(cider([text.rstrip(" .") for text in found], references))
    assert "CIDEr-D" in result["cider_signature"] and result["loss"] < 2

    code, _, err = entry("evaluate", "--workdir", trained, "--config.data.shuffle_images=true")
    assert code == 0, err
    control = json.loads((trained / "evaluation_test,data.shuffle_images=True.json").read_text())
    lines = [
        json.loads(line)
        for line in (trained / "evaluation_test,data.shuffle_images=True.jsonl").read_text().splitlines()
    ]
    # Each has the caption of the image four places on.
    assert [line["text"] for line in lines] == [found[(i + 4) % 9] for i in range(9)]
    assert control["loss"] > result["loss"] + 0.5 and control["cider"] < result["cider"]


def test_an_image_that_cannot_be_read_counts_in_no_score(trained, photos, entry, tmp_path):
    results = []
    for name in ("damaged", "without"):
        folder, workdir = shutil.copytree(photos, tmp_path / name), tmp_path / f"run-{name}"
        shutil.copytree(trained, workdir, ignore=shutil.ignore_patterns("evaluation_*"))
        if name == "damaged":
            (folder / "test" / "4.png").write_bytes(b"")
        else:
            lines = (folder / "test.tsv").read_text().splitlines(keepends=True)
            (folder / "test.tsv").write_text("".join(line for line in lines if "4.png" not in line))
        overrides = [f"--config.data.source=captions:{folder}", "--config.data.skip_corrupt=true"]
        code, out, err = entry("evaluate", "--workdir", workdir, *overrides, "--config.data.max_skipped=0.5")
        assert code == 0 and "8 images, 16 texts" in out, err
        (file,) = workdir.glob("evaluation_test*.json")
        results.append(json.loads(file.read_text()))
    for metric in ("cider", "bleu", "bleu1", "loss", "accuracy"):
        assert results[0][metric] == pytest.approx(results[1][metric], rel=1e-5), metric
    for path in (tmp_path / "damaged" / "test").glob("*.png"):
        path.write_bytes(b"")
    overrides = [f"--config.data.source=captions:{tmp_path / 'damaged'}", "--config.data.skip_corrupt=true"]
    code, _, err = entry("evaluate", "--workdir", workdir, *overrides, "--config.data.max_skipped=1")
    assert code == 2 and "nothing to measure: not one image could be read" in err


# Describing


def test_caption_prints_best_lists_and_draws_attention(trained, photos, described, entry, tmp_path):
    paths, figure = [photos / "test" / f"{i}.png" for i in (0, 4)], tmp_path / "attention.png"
    code, out, err = entry("caption", "--workdir", trained, *paths, "--nbest", 3, "--attention", figure, "--layer", 0)
    assert code == 0 and f"wrote {figure}" in err, err
    found = [line.split("\t") for line in out.splitlines()]
    assert [path for path, _, _ in found] == [str(path) for path in paths for _ in range(3)]
    for image, first in ((0, 0), (4, 3)):
        assert found[first][2] == described[image][0].text
        scores = [float(score) for _, score, _ in found[first : first + 3]]
        assert scores == sorted(scores, reverse=True)
        assert scores[0] == pytest.approx(described[image][0].score, abs=2e-3)
    assert figure.read_bytes().startswith(b"\x89PNG") and figure.stat().st_size > 5_000
    code, again, _ = entry("caption", "--workdir", trained, paths[1])
    assert code == 0 and again.splitlines()[0].split("\t")[2] == found[3][2]


def test_captions_tell_colours_apart(described):
    texts = [candidates[0].text for candidates in described]
    assert [next(color for color in COLORS if color in text) for text in texts] == list(COLORS) * 3


def test_what_caption_refuses_is_one_line_and_exit_2(trained, photos, entry, tmp_path):
    photo, text = photos / "test" / "0.png", tmp_path / "a.png"
    text.write_text("no image")
    for given, message in [
        (["--workdir", trained, tmp_path / "none.png"], f"no image file '{tmp_path}/none.png'"),
        (["--workdir", trained, text], f"cannot read image {text}: "),
        (["--workdir", trained, photo, "--source", "one"], "this run reads no --source"),
        (["--workdir", trained, photo, "--nbest", 0], "n_best is 0"),
        (["--workdir", trained, photo, "--nbest", 3, "--beam", 2], "n_best is 3; it must be from 1 to beam_size, 2"),
        (["--workdir", trained, photo, "--config.seed=1"], "caption takes no --config overrides"),
        (["--workdir", trained, photo, "--layer", 1, "--attention", tmp_path / "b.png"], "no layer 1, head None"),
        (["--workdir", tmp_path / "nowhere", photo], "no run folder"),
    ]:
        code, out, err = entry("caption", *given)
        assert (code, out) == (2, "") and message in err and err.count("\n") == 1, (given, code, err)


# Image-guided translation

WORDS = {"red": "rot", "green": "grün", "blue": "blau"}


@pytest.fixture(scope="module")
def described_lines(tmp_path_factory):
    """Returns a folder of sentences without a colour, whose translations have that of their image; line 1 has none."""
    folder = tmp_path_factory.mktemp("lines")
    colors = [list(COLORS)[i % 3] for i in range(24)]
    for i, color in enumerate(colors):
        Image.new("RGB", (20, 30), COLORS[color]).save(folder / f"{i}.png")
    mapped = []
    for split in SPLITS:
        (folder / f"{split}.en").write_text("a square of a colour\n" * 24, encoding="utf-8")
        (folder / f"{split}.de").write_text(
            "".join(f"ein Quadrat ganz in {WORDS[x]}\n" for x in colors), encoding="utf-8"
        )
        mapped += [f"{split}\t{i}\t{i}.png\n" for i in range(24) if i != 1]
    (folder / "images.tsv").write_text("".join(mapped))
    return folder


def guided(folder, inputs):
    text = "model" if inputs == "text" else "model.text"
    sizes = {f"{text}.{name}": x for name, x in (("width", 32), ("mlp_dim", 64), ("num_heads", 2), ("max_length", 16))}
    sizes |= {f"{text}.{name}": x for name, x in (("encoder_depth", 1), ("decoder_depth", 1), ("dropout", 0.0))}
    if inputs != "text":
        sizes |= {f"model.encoder.{name}": x for name, x in (("width", 32), ("mlp_dim", 64), ("depth", 1))}
    own = {
        "data.source": f"text:{folder}",
        "data.images": folder,
        "data.image_lines": folder / "images.tsv",
        "data.validation": "dev",
        "data.test": "test",
        "steps": 400,
        "epochs": 1000.0,
        "log_every": 100,
        "eval_every": 400,
        "save_every": 0,
        "optimizer.learning_rate": 5e-3,
    }
    fields = {name: x for name, x in TINY.items() if not name.startswith("model.")} | sizes | own
    config = CONFIG.parent / f"multi30k_guided.py:inputs={inputs}"
    return ["--config", config, *(f"--config.{name}={value}" for name, value in fields.items())]


@pytest.mark.parametrize("inputs", ["sequential", "concatenated", "text"])
def test_image_guided_translation_from_training_to_caption(inputs, described_lines, entry, tmp_path):
    """What only the image tells is translated where the model sees it, and is lost with another one's image."""
    workdir, photo = tmp_path / "run", described_lines / "0.png"
    code, out, err = entry("train", "--workdir", workdir, *guided(described_lines, inputs))
    assert code == 0, err
    reads = "source" if inputs == "text" else "source and image"
    assert f"reads       {reads}, en-de" in out and "23 images with 23 texts" in out
    bleu = {}
    for name, options in (("", []), (",data.shuffle_images=True", ["--config.data.shuffle_images=true"])):
        code, _, err = entry("evaluate", "--workdir", workdir, *options)
        assert code == 0, err
        result = json.loads((workdir / f"evaluation_test{name}.json").read_text())
        assert {"bleu", "chrf", "perplexity"} <= result.keys()
        bleu[name] = result["bleu"]
    code, out, err = entry("caption", "--workdir", workdir, photo, "--source", "a square of a colour")
    if inputs == "text":
        assert bleu[""] == bleu[",data.shuffle_images=True"]
        assert (code, out) == (2, "") and "this run reads no images" in err
        return
    assert bleu[""] > bleu[",data.shuffle_images=True"] + 5
    assert code == 0 and out.split("\t")[2].startswith("ein quadrat ganz in "), err
    code, _, err = entry("caption", "--workdir", workdir, photo)
    assert code == 2 and "this run translates: give --source" in err


def test_runs_of_another_task_are_refused(entry, photos, untrained, tmp_path):
    config = config_lib.classification()
    config.model, config.data.image_size = models.fields("mlp", widths=(4,)), (2, 2)
    untrained(Experiment.classifier(config, ("a", "b")), tmp_path)
    code, out, err = entry("caption", "--workdir", tmp_path, photos / "test" / "0.png")
    assert (code, out) == (2, "") and "this is a run of classification, not of captioning" in err


def test_figures_show_images_with_their_captions(trained, entry):
    code, out, err = entry("figures", "--workdir", trained, "--images", 2)
    assert code == 0 and "captions.png" in out, err
    assert (trained / "figures" / "captions.png").read_bytes().startswith(b"\x89PNG")


BAD_FIELDS = {
    "no folder": ({"data.source": "captions:/nowhere"}, "no such folder: /nowhere"),
    "split": ({"data.train": "tran"}, "did you mean 'train'"),
    "metric": ({"best_metric": "cidr"}, "best_metric=cidr: did you mean 'cider'"),
    "packing": ({"data.batching.method": "pack"}, "data.batching.method=pack is for translation"),
    "frozen part": ({"optimizer.freeze": "('encodr',)"}, "optimizer.freeze names 'encodr', did you mean 'encoder'"),
    "mixing": ({"data.augment.mixup": 0.2}, "mixup, cutmix and repeats are for classes"),
    "length": ({"data.batching.max_length": 17, "data.batching.max_tokens": 512}, "max_length=17 is more than the"),
    "languages": ({"data.languages": "('en',)"}, "data.languages=('en',): it should have 2 values"),
    "caption length": ({"decoding.extra_length": 0}, "decoding.extra_length=0: it should be 1 or more"),
    "evaluation": ({"data.eval_tokens": 0}, "data.eval_tokens=0: it should be 1 or more"),
    "channels": ({"data.channels": 2}, "channels is 2: images have 1 (grey) or 3 (RGB)"),
    "image size": ({"data.image_size": "(0, 16)"}, "data.image_size=(0, 16): of 0: it should be 1 or more"),
    "patches": ({"data.image_size": "(20, 16)"}, "image size 20x16 is not divisible by the patch size 8"),
    "resizing": ({"data.resize": "corp"}, "did you mean 'crop'"),
    "crop": ({"data.crop_fraction": 1.5}, "data.crop_fraction=1.5: it should be from 0.01 to 1"),
    "mean": ({"data.mean": "(0.5, 0.5)"}, "mean has 2 values"),
}


@pytest.mark.parametrize("case", BAD_FIELDS)
def test_bad_fields_are_one_line_and_exit_2(case, entry, photos, tmp_path):
    fields, message = BAD_FIELDS[case]
    given = TINY | {"data.source": f"captions:{photos}"} | fields
    arguments = ["--config", CONFIG, *(f"--config.{name}={value}" for name, value in given.items())]
    code, _, err = entry("train", *arguments, "--workdir", tmp_path / "run")
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1, err
    assert message in err and not (tmp_path / "run").exists()
