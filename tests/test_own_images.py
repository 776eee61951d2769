"""A user's own folder of images, by the entry points: what works, and what is said when it does not."""

import functools
import shutil
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from attnjax import config as config_lib
from attnjax.data.images.sources import open_source
from attnjax.tasks.splits import Splits

CONFIG = Path(__file__).parent.parent / "configs" / "folder_vit.py"
SMALL = [
    "--config.steps=2",
    "--config.batch_size=8",
    "--config.eval_batch_size=8",
    "--config.data.image_size=(16,16)",
    "--config.model.patch_size=8",
    "--config.model.width=16",
    "--config.model.depth=1",
    "--config.model.num_heads=2",
    "--config.model.mlp_dim=16",
]


@pytest.fixture
def folder(tmp_path):
    """Ten images in each of two classes and splits, of many sizes."""
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / "mine" / split / name).mkdir(parents=True)
            for i in range(10):
                pixels = rng.integers(256, size=(20 + i, 30 - i, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "mine" / split / name / f"{i}.png")
    return tmp_path / "mine"


def train(entry, source, workdir, *arguments):
    return entry(
        "train", "--config", CONFIG, "--workdir", workdir, f"--config.data.source=folder:{source}", *SMALL, *arguments
    )


def test_a_zip_trains_evaluates_and_predicts(folder, entry, tmp_path):
    archive = shutil.make_archive(str(tmp_path / "mine"), "zip", folder)
    code, out, err = train(entry, archive, tmp_path / "run")
    assert code == 0, err
    assert "train       18 images of 2 classes" in out and "validation  2 images" in out
    code, out, _ = entry("evaluate", "--workdir", tmp_path / "run")
    assert code == 0 and "test: 20 images" in out
    code, out, _ = entry("predict", folder / "test" / "cat" / "0.png", "--workdir", tmp_path / "run")
    assert code == 0 and "cat" in out and "dog" in out
    code, out, err = entry("predict", folder / "test" / "cat", folder / "test/dog/1.png", "--workdir", tmp_path / "run")
    expected = sorted(str(path) for path in (folder / "test/cat").glob("*.png"))
    assert [line for line in out.splitlines() if not line.startswith(" ")] == [*expected, f"{folder}/test/dog/1.png"]
    (tmp_path / "empty").mkdir()
    code, _, err = entry("predict", tmp_path / "empty", "--workdir", tmp_path / "run")
    assert code == 2 and err == f"error: no images in {tmp_path / 'empty'}: they should end in .png, .jpg, ...\n"


def splits_of(config):
    return config.data.train, config.data.validation, config.data.test


def test_the_splits_of_a_folder_are_used(folder, tmp_path):
    def chosen(place):
        return splits_of(config_lib.load(str(CONFIG), source=f"folder:{place}"))

    assert chosen(folder) == ("train[:90%]", "train[90%:]", "test")
    assert chosen(folder / "train") == ("all[:80%]", "all[80%:90%]", "all[90%:]")
    (folder / "test").rename(folder / "val")
    assert chosen(folder) == ("train", "val", "test")
    assert chosen(tmp_path / "nowhere") == ("train[:90%]", "train[90%:]", "test")


def test_the_recipe_follows_the_number_of_images(folder, capsys):
    few = config_lib.load(str(CONFIG), source=f"folder:{folder}")
    assert "18 training images, 100 epochs: about 1 min on two CPU cores" in capsys.readouterr().out
    many = config_lib.load(f"{CONFIG}:size=Ti/16", source=f"folder:{folder}")
    assert few.data.augment.mixup == 0 < many.data.augment.mixup
    assert few.model.width < many.model.width == 192 and many.data.image_size == (128, 128)
    assert splits_of(few) == splits_of(many)


def test_a_missing_test_split_is_said_at_the_start(folder):
    def header(test):
        data = ConfigDict({"source": f"folder:{folder}", "train": "train", "validation": "test", "test": test})
        splits = Splits.from_config(data, functools.partial(open_source, data.source)).for_training()
        return splits.header(lambda source: f"{len(source)} images")

    known = [f"train       20 images, folder:{folder}, train", f"validation  20 images, folder:{folder}, test"]
    assert header("test") == header("") == known
    assert header("tset") == [
        *known,
        f"test        none: {folder} has no split 'tset': did you mean 'test'? Known: test, train",
    ]


def test_images_are_checked_before_a_training(folder, entry):
    code, out, err = entry("prepare", "--check", f"folder:{folder}")
    assert (code, err) == (0, "") and "train: 20 images, 0 of them cannot be read" in out
    (folder / "test/dog/3.png").write_bytes((folder / "test/dog/3.png").read_bytes()[:100])
    (folder / "train/cat/7.png").write_bytes(b"")
    code, out, err = entry("prepare", "--check", f"folder:{folder}")
    assert code == 2 and "2 of 40 images cannot be read" in err and err.count("\n") == 1
    assert "test/dog/3.png: " in out and "train/cat/7.png: it is empty" in out
    assert "test: 20 images, 1 of them cannot be read" in out
    code, _, err = entry("prepare", "--check", str(folder))
    assert code == 2 and "is not tfds:NAME, folder:PATH or idx:PATH" in err


def test_images_of_captions_are_checked(folder, entry):
    images = sorted(folder.glob("train/*/*.png"))
    (folder / "dev.tsv").write_text("".join(f"{path.relative_to(folder)}\ta text\n" for path in images))
    images[0].write_bytes(b"no image")
    code, out, err = entry("prepare", "--check", f"captions:{folder}")
    assert code == 2 and "1 of 20 images" in err and "it is not an image of a known format" in out


def test_a_run_on_eight_devices_goes_on_and_is_evaluated_on_one(folder, entry, process, tmp_path):
    code, out, err = train(entry, folder, tmp_path / "run")
    assert code == 0 and "data parallel over 8" in out, err
    for name, said in (("train", "resumed from step 2"), ("evaluate", "20 images")):
        running = process(name, "--workdir", tmp_path / "run")
        out, err = running.communicate()
        assert running.returncode == 0 and said in out, err


def test_a_run_is_evaluated_at_another_image_size(folder, entry, tmp_path):
    assert train(entry, folder, tmp_path / "run")[0] == 0
    larger = entry("evaluate", "--workdir", tmp_path / "run", "--config.data.image_size=(24,16)")
    assert larger[0] == 0 and "20 images" in larger[1]
    code, _, err = entry("evaluate", "--workdir", tmp_path / "run", "--config.data.image_size=(20,16)")
    assert code == 2 and "20x16 is not divisible" in err


def test_a_corrupt_image_is_named_or_skipped_if_told(folder, entry, tmp_path):
    broken = folder / "train" / "dog" / "3.png"
    broken.write_bytes(broken.read_bytes()[:100])
    everything = ["--config.data.train=train", "--config.data.validation="]
    code, _, err = train(entry, folder, tmp_path / "strict", *everything, "--config.steps=5")
    assert code == 2 and "train/dog/3.png" in err and err.count("\n") == 1
    code, _, err = train(entry, folder, tmp_path / "skip", *everything, "--config.data.skip_corrupt=true")
    assert code == 0, err


def test_folders_that_cannot_be_used(folder, entry, tmp_path):
    (folder / "test" / "dog").rename(folder / "test" / "dgo")
    code, _, err = train(entry, folder, tmp_path / "run")
    assert code == 2 and "dgo" in err and "dog" in err and err.count("\n") == 1
    for split in ("train", "test"):
        shutil.rmtree(folder / split / "dog", ignore_errors=True)
        shutil.rmtree(folder / split / "dgo", ignore_errors=True)
    code, _, err = train(entry, folder, tmp_path / "run")
    assert code == 2 and err == f"error: folder:{folder} has one class, cat: a classifier needs two or more\n"
    (tmp_path / "empty").mkdir()
    code, _, err = train(entry, tmp_path / "empty", tmp_path / "run")
    assert code == 2 and "no images" in err and err.count("\n") == 1


def test_weights_of_another_model_are_refused(folder, entry, tmp_path):
    assert train(entry, folder, tmp_path / "old")[0] == 0
    changes = [f"--config.init_from={tmp_path / 'old'}", "--config.model.width=32"]
    code, _, err = train(entry, folder, tmp_path / "new", *changes)
    assert code == 2 and "another model (model.width: 16 -> 32)" in err and err.count("\n") == 1
    assert not (tmp_path / "new").exists()
