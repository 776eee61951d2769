"""TFDS's data sets: prepared here, or found prepared, and read without TensorFlow."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from attnjax.data.images.sources import open_source
from attnjax.data.tfds import prepare
from attnjax.errors import UserError


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    open_source("tfds:digits", "train", data_dir=str(folder))
    return folder


def test_digits_are_scikit_learns(data_dir):
    from sklearn.datasets import load_digits

    def load_all(source):
        return source.load(np.arange(len(source)))

    parts = [open_source("tfds:digits", split, data_dir=str(data_dir), channels=1) for split in ("train", "test")]
    assert [len(part) for part in parts] == [1437, 360]
    assert parts[0].classes == tuple("0123456789")
    images = np.concatenate([np.stack(load_all(part)[0]) for part in parts])
    labels = np.concatenate([load_all(part)[1] for part in parts])
    pixels, targets = load_digits(return_X_y=True)
    expected = np.round(pixels * 255 / 16).astype(np.uint8)
    found = sorted((label, image.tobytes()) for image, label in zip(images, labels, strict=True))
    assert found == sorted((label, image.tobytes()) for image, label in zip(expected, targets, strict=True))
    assert (np.bincount(load_all(parts[1])[1]) >= 34).all()  # stratified


def test_stock_set_is_read_without_tensorflow_and_other_sets_without_tfds(data_dir, tmp_path):
    # A prepared folder under a name that is not ours goes the way of the stock sets.
    folder = tmp_path / "mnist" / "3.0.1"
    shutil.copytree(data_dir / "digits" / "1.0.0", folder)
    for file in folder.glob("digits-*"):
        file.rename(folder / file.name.replace("digits", "mnist"))
    info = json.loads((folder / "dataset_info.json").read_text())
    (folder / "dataset_info.json").write_text(json.dumps(info | {"name": "mnist", "version": "3.0.1"}))
    code = (
        "import sys; from attnjax.data.images.sources import open_source; "
        "print('tensorflow_datasets' in sys.modules); "
        f"s = open_source('tfds:mnist:3.0.1', 'test', data_dir={str(tmp_path)!r}); "
        "print(len(s), s.load([0])[0][0].shape, s.name(3), 'tensorflow' in sys.modules)"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.splitlines() == ["False", "360 (8, 8, 3) mnist/3.0.1 test[3] False"]

    spec, place = "tfds:mnist", {"data_dir": str(tmp_path)}
    assert len(open_source(spec, "train[:50%]", **place)) == 718
    with pytest.raises(UserError, match="no split 'val'"):
        open_source(spec, "val", **place)
    with pytest.raises(UserError, match="not prepared"):
        open_source("tfds:mnist:2.0.0", "train", **place)
    (folder / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
    with pytest.raises(UserError, match="contains tfrecord files"):
        open_source(spec, "train", **place)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("tfds:cifar10", "is not prepared in .*: run `python experiments/prepare.py cifar10 --data_dir"),
        ("tfds:cifra10", "did you mean TFDS's 'cifar10'"),
        ("tfds:qqqqqq", "Known: digits"),
        ("tfds:digits:9.9.9", "one version"),
        ("tfds:a b", "not a TFDS name"),
    ],
)
def test_unavailable_tfds_sets(tmp_path, spec, message):
    with pytest.raises(UserError, match=message):
        open_source(spec, "train", data_dir=str(tmp_path))


def test_configs_must_be_named(data_dir, tmp_path):
    shutil.copytree(data_dir / "digits" / "1.0.0", tmp_path / "imagenet_resized" / "8x8" / "0.1.0")
    with pytest.raises(UserError, match="imagenet_resized/CONFIG with one of: 8x8"):
        open_source("tfds:imagenet_resized", "train", data_dir=str(tmp_path))


def test_data_dir_from_the_environment(data_dir, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
    assert prepare("digits").info.splits["test"].num_examples == 360


@pytest.fixture
def copied(data_dir, tmp_path):
    """The folder of a data set that a test may damage."""
    shutil.copytree(data_dir, tmp_path / "tfds")
    return tmp_path / "tfds" / "digits" / "1.0.0"


def open_copied(folder, split="train", **options):
    return open_source("tfds:digits", split, data_dir=str(folder.parents[1]), **options)


def test_a_changed_record_file_is_other_data(copied):
    source = open_copied(copied)
    before = source.content()
    (path,) = copied.glob("*train*")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert source.content() != before
    path.unlink()
    with pytest.raises(UserError, match=f"cannot read {path}: No such file"):
        source.content()


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json", "*test*"])
@pytest.mark.parametrize("content", [None, b"", b"[1, 2]", b"{"])
def test_a_damaged_tfds_set_is_named(copied, name, content):
    (path,) = copied.glob(name)
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as raised:
        open_copied(copied, "test").load([0])
    assert "\n" not in str(raised.value) and "digits" in str(raised.value)
    if content is None or "json" in name:
        assert "prepare the data set again with experiments/prepare.py" in str(raised.value)


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), RuntimeError("write() failed: No space left on device")]
)
def test_preparing_on_a_full_disk(tmp_path, monkeypatch, error):
    from attnjax.data.builders.digits import Digits

    def full(self, **options):
        raise error

    monkeypatch.setattr(Digits, "download_and_prepare", full)
    with pytest.raises(UserError, match=f"^cannot prepare 'digits' in {tmp_path}: No space left on device$"):
        prepare("digits", str(tmp_path))


def test_preparing_a_stock_set_asks_for_tensorflow(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install tensorflow-cpu"):
        prepare("mnist", str(tmp_path))
    with pytest.raises(UserError, match="unknown data set"):
        prepare("mnits", str(tmp_path))


def test_prepare_script(process, tmp_path):
    running = process("prepare", "digits", "--data_dir", tmp_path)
    printed, err = running.communicate()
    assert running.returncode == 0, err
    assert f"digits/1.0.0: train 1,437, test 360 examples in {tmp_path}/digits/1.0.0" in printed


def test_prepare_script_says_what_is_wrong(entry, tmp_path):
    code, _, err = entry("prepare", "digit", "--data_dir", tmp_path)
    assert code == 2
    assert len(err.splitlines()) == 1 and "did you mean 'digits'" in err
