"""Kills, signals and damaged checkpoints at random moments: the run ends as if nothing had happened."""

import contextlib
import functools
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from attnjax.runs import checksums
from attnjax.runs.folder import open_run

# Processes that the tests kill leave pipes open.
LOOSE_ENDS = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
pytestmark = [pytest.mark.thorough, LOOSE_ENDS]

KILLS = 30
CONFIG = Path(__file__).parent.parent.parent / "configs" / "digits_vit.py"

# Dropout, stochastic depth, augmentation, mixup and EMA are on, so every random stream must survive a stop. The
# intervals between log lines and between saves are coprime.
ARGUMENTS = [
    f"--config={CONFIG}",
    "--config.steps=240",
    "--config.log_every=7",
    "--config.eval_every=50",
    "--config.save_every=3",
    "--config.keep_checkpoints=3",
    "--config.batch_size=32",
    "--config.ema_decay=0.9",
    "--config.model.width=16",
    "--config.model.mlp_dim=16",
    "--config.model.depth=2",
    "--config.model.dropout=0.1",
    "--config.model.drop_path=0.1",
    "--config.data.augment.erase=0.2",
    "--config.optimizer.warmup_steps=5",
]

# The contents of an intact run folder.
BELONGS = {
    *("checkpoints", "classes.json", "config.json", "data.json", "lock"),
    *("metrics.jsonl", "summary.json", "tensorboard", "train.log"),
}


def finish(processes):
    """Waits for all processes; returns their exit codes and output."""
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    return [process.returncode for process in processes], "".join(outputs)


def last_step(workdir):
    """Returns the step of the last row of metrics.jsonl; 0 if there is none yet."""
    try:
        rows = [line for line in (workdir / "metrics.jsonl").read_text().splitlines(True) if line.endswith("\n")]
    except FileNotFoundError:
        return 0
    return json.loads(rows[-1])["step"] if rows else 0


def wait_for_step(processes, workdir, step):
    """Waits until `step` is logged; returns whether that happened before the processes ended."""
    while processes[0].poll() is None:
        if last_step(workdir) >= step:
            return True
        time.sleep(0.005)
    return False


def log(text):
    print(text, flush=True)


def seeded():
    """Returns a random generator; ATTNJAX_SURVIVE_SEED sets its seed, which repeats a test as far as timing permits."""
    seed = int(os.environ.get("ATTNJAX_SURVIVE_SEED", random.randrange(10**6)))
    log(f"seed {seed} (ATTNJAX_SURVIVE_SEED={seed} repeats it)")
    return random.Random(seed)


@pytest.fixture(scope="module")
def uninterrupted(launch, tmp_path_factory):
    """Returns the folder of a run in `count` processes that was never stopped: uninterrupted(count=1)."""

    @functools.cache
    def train(count=1):
        workdir = tmp_path_factory.mktemp("runs") / "whole"
        codes, out = finish(launch(workdir, *ARGUMENTS, count=count))
        assert codes == [0] * count, out
        return workdir

    return train


def assert_same_run(one, other, rows):
    """Rows (except speeds) and final weights are equal bit for bit, and no stray files are left."""
    for split in ("train", "validation"):
        assert rows(one, split) == rows(other, split)
    a, b = open_run(one, "latest"), open_run(other, "latest")
    assert a.step == b.step == 240
    assert jax.tree.all(jax.tree.map(np.array_equal, (a.params, a.model_state), (b.params, b.model_state)))
    assert open_run(one).step == open_run(other).step
    assert {path.name for path in other.iterdir()} == BELONGS
    steps = [{path.name for path in (run / "checkpoints").iterdir()} for run in (one, other)]
    assert steps[0] == steps[1]


def resumed_at(out):
    found = re.search(r"resumed from step ([\d,]+) of", out)
    return int(found[1].replace(",", "")) if found else 0


@pytest.mark.parametrize("count", [1, 2])
def test_killed_at_random_moments(count, launch, uninterrupted, tmp_path, rows, tally):
    """Half of the kills come during steps, logging, saving and deleting, half at any moment of start-up."""
    generator, workdir = seeded(), tmp_path / "killed"
    reached, lost, start = 0, 0, 5.0
    for kill in range(KILLS):
        began = time.monotonic()
        processes = launch(workdir, *ARGUMENTS, count=count)
        if kill % 2:
            time.sleep(generator.uniform(0, 1.1 * start))
        else:
            assert wait_for_step(processes, workdir, reached + 1), finish(processes)
            start = time.monotonic() - began
            time.sleep(generator.uniform(0, 0.15))
        for process in processes:
            process.kill()
        codes, out = finish(processes)
        assert set(codes) == {-signal.SIGKILL}, out
        assert "damaged" not in out, out
        if "resumed from" in out:
            lost += max(0, reached - resumed_at(out))
            reached = resumed_at(out)
        reached = max(reached, last_step(workdir))
        log(f"kill {kill + 1}: resumed from step {resumed_at(out)}, at least at step {reached}")
    codes, out = finish(launch(workdir, *ARGUMENTS, count=count))
    assert set(codes) == {0}, out
    lost += max(0, reached - resumed_at(out))
    assert_same_run(uninterrupted(count), workdir, rows)
    tally["kills survived"] += KILLS
    tally["steps lost"] += lost


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_stopped_by_a_signal(number, code, count, launch, uninterrupted, tmp_path, rows, tally):
    """The signal goes to one process, which notifies the others."""
    generator, workdir = seeded(), tmp_path / "stopped"
    for step in sorted(generator.sample(range(1, 200), 3)):
        processes = launch(workdir, *ARGUMENTS, count=count)
        assert wait_for_step(processes, workdir, max(step, last_step(workdir) + 1)), finish(processes)
        signalled = generator.choice(processes)
        for _ in range(2 if count == 1 else 1):
            signalled.send_signal(number)
        codes, out = finish(processes)
        assert codes == [code] * count, out
        stopped = re.search(rf"stopped by {number.name} after step (\d+), which is saved; to resume: .*", out)
        assert stopped and "Traceback" not in out, out
        assert (workdir / "checkpoints" / stopped[1] / checksums.FILE).is_file()
        log(stopped[0])
        tally["stops by SIGTERM and SIGINT survived"] += 1
    codes, out = finish(launch(workdir, count=count))
    assert codes == [0] * count and resumed_at(out) == int(stopped[1]), out
    assert_same_run(uninterrupted(count), workdir, rows)


@pytest.mark.parametrize("killed", [0, 1])
def test_the_others_end_with_a_killed_process(killed, launch, tmp_path):
    processes = launch(tmp_path / "run", *ARGUMENTS, count=2)
    assert wait_for_step(processes, tmp_path / "run", 20), finish(processes)
    processes[killed].kill()
    out, _ = processes[1 - killed].communicate(timeout=120)
    assert processes[1 - killed].returncode == 1
    assert out.splitlines()[-1].startswith("error: another process ended or cannot be reached")
    assert "Traceback" not in out and "terminate called" not in out


# Damage


def array_file(step):
    return max((step / "state/ocdbt.process_0/d").iterdir(), key=lambda path: path.stat().st_size)


def truncate(step):
    path = array_file(step)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(step):
    path = array_file(step)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def empty(step):
    shutil.rmtree(step)
    step.mkdir()


DAMAGE = {
    "truncated file": (truncate, "bytes, "),
    "flipped bit": (flip, "its SHA-256 differs"),
    "missing file": (lambda step: array_file(step).unlink(), " is missing"),
    "empty folder": (empty, "the folder is empty"),
    "extra empty folder": (lambda step: (step.parent / "9999").mkdir(), "the folder is empty"),
    "no checksums": (lambda step: (step / checksums.FILE).unlink(), "it has no checksums.json"),
}


def test_damaged_checkpoints(launch, uninterrupted, tmp_path, rows, tally):
    """Kills a run repeatedly, each time damaging its latest checkpoint; it resumes from the one before."""
    workdir = tmp_path / "damaged"
    processes, found = launch(workdir, *ARGUMENTS), None
    for number, (damage, message) in enumerate(DAMAGE.values(), 1):
        assert wait_for_step(processes, workdir, 30 * number), finish(processes)
        processes[0].kill()
        _, out = finish(processes)
        if found:
            found(out)
        steps = [path for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()]
        latest = max(steps, key=lambda path: int(path.name))
        damage(latest)

        def found(out, message=message, latest=latest):
            line = next(line for line in out.splitlines() if "is damaged" in line)
            assert line.startswith("checkpoint ") and message in line and "Traceback" not in out, out
            assert Path(line.split("it was moved to ")[1]).is_dir()
            log(f"{line}; resumed from step {resumed_at(out)}")
            tally["damages detected"] += 1
            tally["steps lost"] += int(latest.name) - resumed_at(out)

        processes = launch(workdir)
    codes, out = finish(processes)
    assert codes == [0], out
    found(out)
    shutil.rmtree(workdir / "checkpoints" / "damaged")
    assert_same_run(uninterrupted(), workdir, rows)


# Disks


def assert_one_line(out, *parts):
    """`out` ends in one error line that contains all parts, without a traceback."""
    assert "Traceback" not in out, out
    last = out.splitlines()[-1]
    assert last.startswith("error: ") and all(part in last for part in parts), out
    log(last)


@contextlib.contextmanager
def small_disk(folder, size):
    """Mounts a tmpfs of this size; yields a function that remounts it with other options; skips without permission."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o"]
    made = subprocess.run([*mount, f"size={size}", "tmpfs", folder], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"cannot mount a tmpfs: {made.stderr.strip()}")
    try:
        yield lambda options: subprocess.run([*mount, f"remount,{options}", folder], check=True)
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_and_a_read_only_one(launch, uninterrupted, tmp_path, rows):
    with small_disk(tmp_path / "disk", "1m") as remount:
        workdir = tmp_path / "disk" / "run"
        (code,), out = finish(launch(workdir, *ARGUMENTS))
        assert code == 2
        assert_one_line(out, str(workdir), "No space left on device", "checkpoints are intact: ")
        remount("ro")
        (code,), out = finish(launch(workdir))
        assert code == 2
        assert_one_line(out, str(workdir), "Read-only file system")
        remount("rw,size=64m")
        processes = launch(workdir)
        assert wait_for_step(processes, workdir, 100), finish(processes)
        fill(tmp_path / "disk" / "filler")
        (code,), out = finish(processes)
        assert code == 2
        assert_one_line(out, str(workdir), "No space left on device", "checkpoints are intact: ")
        (tmp_path / "disk" / "filler").unlink()
        (code,), out = finish(launch(workdir))
        assert code == 0, out
        assert_same_run(uninterrupted(), workdir, rows)


def fill(path):
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(2**16))


def test_files_that_may_not_grow(launch, uninterrupted, tmp_path):
    """A file size limit fails writes as a disk quota does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8000, before[1]))
    try:
        processes = launch(tmp_path / "run", *ARGUMENTS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    (code,), out = finish(processes)
    assert code == 2
    assert_one_line(out, str(tmp_path), "File too large")


def test_a_folder_that_is_taken_away(launch, tmp_path):
    workdir = tmp_path / "run"
    processes = launch(workdir, *ARGUMENTS)
    assert wait_for_step(processes, workdir, 20), finish(processes)
    workdir.rename(tmp_path / "away")
    (code,), out = finish(processes)
    assert code == 2
    assert_one_line(out, str(workdir), "gone", "there is no earlier checkpoint")
