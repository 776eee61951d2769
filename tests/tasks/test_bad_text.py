"""Text that cannot be trained on: one line, exit code 2, and no run folder. Fields are in test_tasks.py."""

import shutil
from pathlib import Path

import pytest

CONFIG = Path(__file__).parents[2] / "configs" / "numwords_transformer.py"
TINY = {"model.width": 8, "data.validation": "val", "data.vocabulary.size": 70, "optimizer.warmup_steps": 1}


def spoil(folder, numbers, side, change):
    """Returns a folder whose training sentences of one language went through change(lines) -> lines of bytes."""
    shutil.copytree(numbers, folder)
    path = folder / f"train.{side}"
    path.write_bytes(b"".join(line + b"\n" for line in change(path.read_bytes().splitlines())))
    return folder


def put(line):
    return lambda lines: [*lines[:4], line, *lines[5:]]


BAD_DATA = {
    "unequal lengths": ("de", lambda lines: lines[:-2], ["train.en has 250 lines but", "train.de has 248"]),
    "not UTF-8": ("en", put(b"gr\xfcn"), ["train.en is not UTF-8 text: line 5 holds byte 0xfc"]),
    "a blank line": ("de", put(b" "), ["train.en line 5 has a blank sentence ('de')"]),
    "nothing": ("en", lambda lines: [], ["train.en is empty"]),
    "nothing but blanks": ("en", lambda lines: [b"", b" "], ["train.en is empty"]),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_text_is_one_line_and_exit_2(case, entry, numbers, tmp_path):
    side, change, messages = BAD_DATA[case]
    folder = spoil(tmp_path / "text", numbers, side, change)
    assert_refused(entry, {"data.source": f"text:{folder}"}, tmp_path / "run", messages)


BAD_FIELDS = {
    "unknown split": ({"data.train": "tran"}, "did you mean 'train'"),
    "a slice of nothing": ({"data.train": "train[400:]"}, "train[400:]"),
    "no checkpoints": ({"keep_checkpoints": 0}, "keep_checkpoints=0: it should be 1 or more"),
    "no source": ({"data.source": "text:/nowhere"}, "no such folder of text files: /nowhere"),
}


@pytest.mark.parametrize("case", BAD_FIELDS)
def test_bad_fields_are_one_line_and_exit_2(case, entry, numbers, tmp_path):
    fields, message = BAD_FIELDS[case]
    assert_refused(entry, {"data.source": f"text:{numbers}"} | fields, tmp_path / "run", [message])


def assert_refused(entry, fields, workdir, messages):
    given = [f"--config.{name}={value}" for name, value in (TINY | fields).items()]
    code, _, err = entry("train", "--config", CONFIG, *given, "--workdir", workdir)
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1
    assert all(message in err for message in messages), err
    assert not workdir.exists()
