"""Training in two processes equals training in one, and its checkpoints open in either."""

import shutil
import socket
from pathlib import Path

import pytest

CONFIG = Path(__file__).parent.parent / "configs" / "digits_lenet.py"
SHORT = {
    "steps": 12,
    "epochs": 1.0,
    "eval_every": 6,
    "log_every": 3,
    "keep_checkpoints": 3,
    "batch_size": 32,
    "optimizer.warmup_steps": 2,
}


@pytest.fixture(scope="module")
def train(process):
    """Trains in `count` processes at once: train(workdir, count, *arguments) -> stdout of process 0."""

    def call(workdir, count, *arguments):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        given = ["--config", CONFIG, *(f"--config.{name}={value}" for name, value in SHORT.items()), *arguments]
        flags = [["--coordinator", address, "--processes", count, "--process", i] for i in range(count)]
        started = [process("train", *given, "--workdir", workdir, *(flag if count > 1 else [])) for flag in flags]
        ended = [(one.communicate(timeout=300), one.returncode) for one in started]
        assert all(code == 0 for _, code in ended), ended
        return ended[0][0][0]

    return call


def test_two_processes_train_as_one_and_their_checkpoint_opens_on_one(train, rows, tmp_path):
    one, two, back = (tmp_path / name for name in ("one", "two", "back"))
    train(one, 1)
    out = train(two, 2)
    assert "pmap, data parallel over 2, 2 process(es)" in out
    assert_same_numbers(rows, one, two)
    shutil.copytree(two, back)
    shutil.rmtree(back / "checkpoints" / "12")
    out = train(back, 1, "--config.parallel.kind=jit")
    assert "resumed from step 6" in out and "jit on a mesh of data 1 x fsdp 1 x tensor 1" in out
    assert_same_numbers(rows, one, back)
    shutil.rmtree(two / "checkpoints" / "12")
    assert "resumed from step 6" in train(two, 2)
    assert_same_numbers(rows, one, two)


def assert_same_numbers(rows, one, other):
    for split in ("train", "validation"):
        found = rows(other, split)
        assert len(found) == len(rows(one, split))
        for a, b in zip(rows(one, split), found, strict=True):
            assert {**a, "split": 0} == pytest.approx({**b, "split": 0}, rel=1e-4)


def test_flags_that_do_not_fit_are_one_line(entry, tmp_path):
    for flags, message in (
        (["--processes", 2], "go together"),
        (["--coordinator", "host:1", "--processes", 2, "--process", 2], "--process 2 of --processes 2"),
        (["--coordinator", "host", "--processes", 2, "--process", 1], "it must be HOST:PORT"),
    ):
        code, out, err = entry("train", "--config", CONFIG, "--workdir", tmp_path, *flags)
        assert (code, out) == (2, "") and message in err and err.count("\n") == 1


def test_a_dry_run_says_what_a_step_needs_and_writes_nothing(entry, tmp_path):
    mesh = ["--config.parallel.kind=jit", "--config.parallel.fsdp=4", "--config.parallel.tensor=2"]
    for arguments, state in (([], "(740,"), (mesh, None)):
        code, out, err = entry("train", "--config", CONFIG, "--workdir", tmp_path / "run", "--dry_run", *arguments)
        assert code == 0, err
        for line in ("61,706 parameters", "peak memory", "GFLOP", "batch per device", "seconds to compile"):
            assert line in out
        assert state is None or state in out
        assert not (tmp_path / "run").exists()
