"""Weight files are read, or refused with a one-line error."""

import sys

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from attnjax.errors import UserError
from attnjax.weights.files import read_arrays, read_description
from attnjax.weights.naming import check_numbers

ARRAYS = {"a/kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "step": np.array(3)}


def same(ours):
    assert ours.keys() == ARRAYS.keys()
    return all(np.array_equal(ours[name], ARRAYS[name]) for name in ARRAYS)


def test_npz_and_safetensors_are_read(tmp_path):
    np.savez(tmp_path / "a.npz", **ARRAYS)
    safetensors.numpy.save_file(ARRAYS, tmp_path / "model.safetensors")
    assert same(read_arrays(tmp_path / "a.npz"))
    assert same(read_arrays(tmp_path / "model.safetensors"))
    assert same(read_arrays(tmp_path))  # the folder


@pytest.mark.parametrize("half", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_becomes_float32(half, tmp_path):
    array = np.array([1.5, -2.0]).astype(half)
    np.savez(tmp_path / "a.npz", a=array)
    safetensors.numpy.save_file({"a": array}, tmp_path / "a.safetensors")
    for file in ("a.npz", "a.safetensors"):
        read = read_arrays(tmp_path / file)["a"]
        assert read.dtype == np.float32
        assert read.tolist() == [1.5, -2.0]


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"not weights", b"PK\x03\x04 cut short"])
def test_damaged_file_is_one_line(suffix, content, tmp_path):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match="is damaged, or not a") as error:
        read_arrays(path)
    assert "\n" not in str(error.value)


def test_truncated_file_is_one_line(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.zeros(1000))
    safetensors.numpy.save_file({"a": np.zeros(1000)}, tmp_path / "a.safetensors")
    for path in (tmp_path / "a.npz", tmp_path / "a.safetensors"):
        path.write_bytes(path.read_bytes()[:-500])
        with pytest.raises(UserError, match="is damaged"):
            read_arrays(path)


def test_pickled_objects_in_npz_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.array([{"x": 1}], dtype=object))
    with pytest.raises(UserError, match=r"a\.npz' contains Python objects, not only arrays; it is not opened$"):
        read_arrays(tmp_path / "a.npz")


def test_a_single_array_is_no_npz(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(3))
    (tmp_path / "a.npy").rename(tmp_path / "a.npz")
    with pytest.raises(UserError, match=r"a\.npz' is a single array \(\.npy\), not the named arrays of an \.npz file"):
        read_arrays(tmp_path / "a.npz")


def test_eight_bit_floats_are_refused(tmp_path):
    header = b'{"a":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[0,2]}}'
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0")
    with pytest.raises(UserError, match=r"has arrays of a type that NumPy lacks .*: save them as float32"):
        read_arrays(tmp_path / "a.safetensors")


def test_only_a_torch_file_has_parts(tmp_path):
    np.savez(tmp_path / "a.npz", **ARRAYS)
    with pytest.raises(UserError, match=r"a\.npz' has no parts"):
        read_arrays(f"{tmp_path}/a.npz:model")


def test_missing_and_unknown_files(tmp_path):
    with pytest.raises(UserError, match=r"no weights file or folder '.*nothing\.npz'"):
        read_arrays(tmp_path / "nothing.npz")
    with pytest.raises(UserError, match=r"contains no weights: expected model\.safetensors"):
        read_arrays(tmp_path)
    (tmp_path / "weights.h5").write_bytes(b"")
    with pytest.raises(UserError, match=r"a known weights suffix\. Known: \.npz, \.safetensors, \.pt"):
        read_arrays(tmp_path / "weights.h5")


def test_torch_files_need_torch(tmp_path, monkeypatch):
    (tmp_path / "a.pt").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match="pip install torch"):
        read_arrays(tmp_path / "a.pt")


def test_only_a_hugging_face_description_is_read(tmp_path):
    safetensors.numpy.save_file(ARRAYS, tmp_path / "model.safetensors")
    assert read_description(tmp_path) == {}
    (tmp_path / "config.json").write_text('{"hidden_size": 8}')
    assert read_description(tmp_path) == {}
    (tmp_path / "config.json").write_text('{"model_type": "vit", "hidden_size": 8}')
    assert read_description(tmp_path / "model.safetensors")["hidden_size"] == 8
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json' is damaged"):
        read_description(tmp_path)


@pytest.mark.parametrize("array", [np.array([1.0, np.nan]), np.array([np.inf, 0.0]), np.array([1, 2], np.int8)])
def test_weights_are_finite_floating_point_numbers(array):
    with pytest.raises(UserError, match=r"'a': w has (1 NaN or infinite numbers|numbers of type int8)"):
        check_numbers({"w": array}, "a")
