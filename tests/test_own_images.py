"""A user's own folder of images, by the entry points: what works, and what is said when it does not."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

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
    (tmp_path / "empty").mkdir()
    code, _, err = train(entry, tmp_path / "empty", tmp_path / "run")
    assert code == 2 and "no images" in err and err.count("\n") == 1


def test_weights_of_another_model_are_refused(folder, entry, tmp_path):
    assert train(entry, folder, tmp_path / "old")[0] == 0
    changes = [f"--config.init_from={tmp_path / 'old'}", "--config.model.width=32"]
    code, _, err = train(entry, folder, tmp_path / "new", *changes)
    assert code == 2 and "another model (model.width: 16 -> 32)" in err and err.count("\n") == 1
    assert not (tmp_path / "new").exists()
