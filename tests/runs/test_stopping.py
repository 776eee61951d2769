"""Signals, a second training in one folder, changed data, divergence: each ends a training in one clear line."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from attnjax.errors import Diverged, UserError, WriteError
from attnjax.runs import checksums, loop
from attnjax.runs import folder as run
from attnjax.runs.checkpoint import Checkpoints
from attnjax.runs.compilation import CompiledStep
from attnjax.runs.locking import locked
from attnjax.runs.log import RunLog
from attnjax.runs.reader import has_checkpoint
from attnjax.runs.stopping import watch_signals
from attnjax.tasks.classification import ClassificationTask


@pytest.fixture(autouse=True)
def hang_up():
    """SIGHUP as in a terminal, even if the tests were started by nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def signal_at(monkeypatch, step, *numbers):
    """Sends signals to this process while it takes a step."""
    take = CompiledStep.__call__

    def taken(compiled, state, batch):
        if int(state.step) + 1 == step:
            for number in numbers:
                os.kill(os.getpid(), number)
        return take(compiled, state, batch)

    monkeypatch.setattr(CompiledStep, "__call__", taken)


@pytest.mark.parametrize(
    ("step", "number", "code"),
    [
        *((3, signal.SIGTERM, 143), (6, signal.SIGINT, 130), (7, signal.SIGTERM, 143), (1, signal.SIGINT, 130)),
        *((4, signal.SIGHUP, 129), (12, signal.SIGTERM, 143)),
    ],
)
def test_stopped_by_a_signal_it_resumes_as_if_it_had_not_been(
    step, number, code, digits, tmp_path, uninterrupted, assert_same_run, capsys
):
    workdir = tmp_path / "stopped"
    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    handlers = [signal.getsignal(number) for number in signals]
    with pytest.MonkeyPatch.context() as patch:
        signal_at(patch, step, number, number)
        with pytest.raises(SystemExit) as stop:
            digits(workdir)
    assert stop.value.code == code
    assert handlers == [signal.getsignal(number) for number in signals]
    out = capsys.readouterr().out
    assert f"stopped by {number.name} after step {step}, which is saved; to resume: " in out and str(workdir) in out
    digits(workdir)
    assert f"resumed from step {step} of" in capsys.readouterr().out
    assert_same_run(uninterrupted, workdir)


def test_a_signal_while_saving_does_not_lose_the_save(digits, tmp_path, monkeypatch):
    signal_at(monkeypatch, 5, signal.SIGTERM)
    save = Checkpoints.save

    def impatient(self, step, *arguments):
        save(self, step, *arguments)
        if step == 5:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Checkpoints, "save", impatient)
    with pytest.raises(SystemExit) as stop:
        digits(tmp_path / "run")
    assert stop.value.code == 143  # the first one's
    assert run.open_run(tmp_path / "run", "latest").step == 5


def test_a_signal_during_a_validation_saves_before_it(
    digits, tmp_path, monkeypatch, uninterrupted, assert_same_run, capsys
):
    """Also where that is the resumed run's first act."""
    workdir = tmp_path / "run"
    with monkeypatch.context() as patch:

        def long(task, variables):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)

        patch.setattr(ClassificationTask, "validate", long)
        for _ in range(2):
            with pytest.raises(SystemExit) as stop:
                digits(workdir)
            assert stop.value.code == 143
            assert "stopped by SIGTERM after step 6, which is saved" in capsys.readouterr().out
    digits(workdir)
    assert_same_run(uninterrupted, workdir)
    assert not list((workdir / "checkpoints").glob(".*"))


def test_a_kill_while_a_step_is_saved_again_does_not_lose_it(digits, tmp_path, uninterrupted, assert_same_run):
    workdir = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        signal_at(patch, 6, signal.SIGTERM)
        with pytest.raises(SystemExit):
            digits(workdir, keep_checkpoints=1)
    (workdir / "checkpoints" / "6").rename(workdir / "checkpoints" / ".replaced-6")
    with pytest.raises(UserError, match="another config"):
        digits(workdir, learning_rate=0.5)
    digits(workdir)
    assert_same_run(uninterrupted, workdir)


def test_a_signal_at_the_last_step_is_an_end_where_nothing_is_validated(uninterrupted, tmp_path, monkeypatch):
    config = run.open_run(uninterrupted).config
    config.data.validation, config.steps = "", 3
    signal_at(monkeypatch, 3, signal.SIGTERM)
    loop.train(config, tmp_path / "run")
    assert run.open_run(tmp_path / "run", "latest").step == 3


def test_a_second_ctrl_c_ends_what_the_first_does_not(monkeypatch, capfd):
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    with watch_signals(several=False) as stop:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # a key held down
        assert not ended
        stop._received -= 60
        os.kill(os.getpid(), signal.SIGINT)
        assert ended == [130]
        assert stop.asked(1)  # and so it is being saved
        os.kill(os.getpid(), signal.SIGINT)
        assert ended == [130]
    err = capfd.readouterr().err
    assert "stopping after this step; another Ctrl-C ends at once" in err and "ended at once" in err


def test_nohup_is_respected():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with watch_signals(several=False) as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.asked(1)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_closed_stdout_does_not_end_a_training(digits, tmp_path, monkeypatch, uninterrupted, assert_same_run):
    """As `train.py | head` leaves it."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", buffering=1) as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        digits(tmp_path / "[/y]")
    assert_same_run(uninterrupted, tmp_path / "[/y]")
    assert "validation, best checkpoint" in (tmp_path / "[/y]" / "train.log").read_text()


def test_a_folder_whose_name_is_not_text_or_a_files_is_refused(digits, tmp_path):
    workdir = tmp_path / os.fsdecode(b"caf\xe9")
    with pytest.raises(UserError, match=r"run folder, .*caf\\udce9', is not UTF-8"):
        digits(workdir)
    assert not workdir.exists()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file' is a file"):
        digits(tmp_path / "file")


def test_signals_are_only_recorded():
    with watch_signals(several=False) as stop:
        assert not stop.asked(1)
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked(2) and stop.exit_code == 130 and stop.name == "SIGINT"


# One training in a folder


HOLD = "import sys, pathlib; from attnjax.runs.locking import locked\nwith locked(pathlib.Path(sys.argv[1])): {}"


def test_a_second_training_is_refused_and_told_by_whom(digits, tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD.format("print('held', flush=True); sys.stdin.read()"), tmp_path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"is in use by process {holder.pid} on "):
            digits(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["lock"]
    finally:
        holder.kill()  # as by the kernel: the lock goes with it
        holder.communicate()
    with locked(tmp_path):
        assert (tmp_path / "lock").read_text().startswith(f"{os.getpid()} on ")


def test_reading_takes_no_lock(uninterrupted):
    with (uninterrupted / "lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert run.open_run(uninterrupted).step


# Divergence


def test_a_diverged_training_stops_and_keeps_the_batch(digits, tmp_path):
    with pytest.raises(Diverged) as error:
        digits(tmp_path, learning_rate=1e30, schedule="constant", name="sgd", save_every=1)
    message, latest = str(error.value), run.open_run(tmp_path, "latest").step
    step = latest + 1
    assert error.value.exit_code == 1 and "\n" not in message
    for part in (f"step {step} diverged", "loss ", "gradient norm ", "learning rate 1e+30", f"of step {latest}"):
        assert part in message
    batch = np.load(tmp_path / f"nonfinite_step_{step}.npz")
    assert batch["image"].shape == (32, 8, 8, 1)
    assert all(
        np.isfinite(row["loss"]) for row in map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    )


def test_no_step_is_saved_before_it_is_known_to_be_finite(digits, tmp_path, monkeypatch):
    take = CompiledStep.__call__

    def broken(compiled, state, batch):
        state, metrics = take(compiled, state, batch)
        norm, one = metrics["gradient_norm"]
        return state, metrics | {"gradient_norm": (norm * (np.nan if int(state.step) == 6 else 1), one)}

    monkeypatch.setattr(CompiledStep, "__call__", broken)
    with pytest.raises(Diverged, match=r"step 6 diverged.*gradient norm nan.*of step 4"):
        digits(tmp_path)
    assert [path.name for path in tmp_path.glob("nonfinite*")] == ["nonfinite_step_6.npz"]
    assert max(int(path.name) for path in (tmp_path / "checkpoints").glob("[0-9]*")) == 4


# Folders that cannot be written to


def assert_failed(error, *parts):
    assert error.value.exit_code == 2 and "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize("saving", [False, True])
def test_a_folder_that_vanishes(saving, digits, tmp_path, monkeypatch):
    workdir, vanished = tmp_path / "run", threading.Event()
    save, seal = Checkpoints.save, checksums.seal

    def sealing(folder, step):
        if saving and step == 4:
            assert vanished.wait(60)
        seal(folder, step)

    def vanishing(self, step, *arguments):
        if step == 6:
            if not saving:
                self.wait()
            workdir.rename(tmp_path / "elsewhere")
            vanished.set()
        save(self, step, *arguments)

    monkeypatch.setattr(checksums, "seal", sealing)
    monkeypatch.setattr(Checkpoints, "save", vanishing)
    with pytest.raises(WriteError) as error:
        digits(workdir)
    lost = 4 if saving else 6
    assert_failed(error, f"cannot save step {lost} in '{workdir}", "folder is gone; there is no earlier checkpoint")
    assert not has_checkpoint(workdir)  # a save under way may make the folder anew, but no step


def no_space(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_while_a_checkpoint_is_sealed(digits, tmp_path, monkeypatch, uninterrupted, assert_same_run):
    seal = checksums.seal
    monkeypatch.setattr(checksums, "seal", lambda folder, step: no_space() if step == 6 else seal(folder, step))
    with pytest.raises(WriteError) as error:
        digits(tmp_path)
    assert_failed(error, "cannot save step 6", str(tmp_path), "No space left", "checkpoints are intact: 2, 4")
    monkeypatch.undo()
    digits(tmp_path)
    assert_same_run(uninterrupted, tmp_path)
    assert not list(tmp_path.rglob("*tmp*"))


@pytest.mark.parametrize("name", ["_jsonl", "_file", "_events"])
def test_a_full_disk_while_a_line_is_logged(name, digits, tmp_path, monkeypatch):
    class Full:
        write = write_event = flush = close = no_space

    write = RunLog.write

    def full(self, step, *arguments):
        if step == 6:
            getattr(self, name).close()
            setattr(self, name, Full())
        write(self, step, *arguments)

    monkeypatch.setattr(RunLog, "write", full)
    with pytest.raises(WriteError) as error:
        digits(tmp_path)
    assert_failed(error, f"cannot write to '{tmp_path}': No space left", "checkpoints are intact: 2, 4")


def test_a_file_in_the_place_of_the_folder(digits, tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(UserError, match=f"the run folder '{tmp_path / 'run'}' is a file: choose another name"):
        digits(tmp_path / "run")
