"""A checkpoint trained elsewhere reaches exactly its published accuracy with our commands."""

import os
from pathlib import Path

import pytest

pytest.importorskip("torch")

CLASSES = "airplane,automobile,bird,cat,deer,dog,frog,horse,ship,truck"


@pytest.mark.skipif("ATTNJAX_DATA" not in os.environ, reason="ATTNJAX_DATA is not set: CIFAR-10 is not available")
def test_published_accuracy_is_exact(process, entry, tmp_path):
    data = Path(os.environ["ATTNJAX_DATA"])
    weights = data / "checkpoints" / "vit-tiny-cifar10" / "model_final.pt"
    workdir = tmp_path / "run"
    options = ("--config", "configs/cifar10_vit_tiny.py", "--workdir", workdir, "--classes", CLASSES)
    finish(process("convert", weights, *options))

    source = f"--config.data.source=folder:{data / 'cifar10-test' / 'cifar10-test.zip'}"
    out = finish(process("evaluate", "--workdir", workdir, source, "--split", "test"))
    assert "10,000 images" in out
    assert "test accuracy 0.4703\n" in out

    code, _, err = entry("convert", workdir, "--huggingface", tmp_path / "out")
    assert (code, err.count("\n")) == (2, 1)
    assert "cannot express this model: final_norm=False" in err
    assert not (tmp_path / "out").exists()


def finish(started):
    out, err = started.communicate(timeout=300)
    assert started.returncode == 0, err
    return out
