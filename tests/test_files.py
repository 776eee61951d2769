"""Atomic writes, checksums of JSON, and what is said of files that cannot be written or read."""

import contextlib
import threading

import pytest

from attnjax.errors import WriteError
from attnjax.files import parse_checked, write_atomically, write_json, writing


def test_several_writers_and_readers_of_one_file(tmp_path):
    """Each reads one of the complete contents, and no write fails."""
    path, contents, failures = tmp_path / "file", [character * 100_000 for character in "ab"], []
    write_atomically(path, contents[0])

    def write(data):
        try:
            for _ in range(40):
                write_atomically(path, data)
                assert path.read_text() in contents
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(data,)) for data in contents * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_what_an_interrupted_write_left_is_overwritten(tmp_path):
    (tmp_path / ".file.tmp").write_text("a longer text than the next")
    write_atomically(tmp_path / "file", "short")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("file", "short")]


def read(path):
    return parse_checked(path.read_bytes(), path.name)


def test_json_is_read_as_it_was_written(tmp_path):
    data = {"name": "é", "loss": 0.1 + 0.2, "nan": float("inf"), "list": [1, None]}
    write_json(tmp_path / "a.json", data)
    assert read(tmp_path / "a.json") == data


@pytest.mark.parametrize("text", ["", "\0\0", "[1]", '{"a": 1', '{"a": 2, "crc32": "e3a4bf49"}'])
def test_damaged_json_is_refused(text):
    with pytest.raises(ValueError):
        parse_checked(text, "a.json")


def test_json_of_another_file_is_refused(tmp_path):
    write_json(tmp_path / "a.json", {"a": 1})
    (tmp_path / "a.json").rename(tmp_path / "b.json")
    with pytest.raises(ValueError, match="checksum differs"):
        read(tmp_path / "b.json")


def test_every_flipped_bit_in_json_is_found_or_harmless(tmp_path):
    path, data = tmp_path / "a.json", {"accuracy": 0.875, "step": 12}
    write_json(path, data)
    whole = path.read_bytes()
    for place in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        with contextlib.suppress(ValueError):
            assert {name: x for name, x in read(path).items() if name in data} == data


def test_json_without_a_checksum_is_read():
    assert parse_checked('{"a": 1}', "a.json") == {"a": 1}


def test_a_folder_in_the_place_of_a_file_is_named(tmp_path):
    (tmp_path / "a.json").mkdir()
    with pytest.raises(WriteError, match=r"cannot write to '.*': Is a directory \(a.json\)"), writing(tmp_path):
        write_json(tmp_path / "a.json", {})
