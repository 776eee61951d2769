"""Damage to checkpoints: found, named, set aside, and survived."""

import json
import re
import shutil

import pytest

from attnjax.errors import UserError
from attnjax.runs import checksums
from attnjax.runs import folder as run
from attnjax.runs.checkpoint import Checkpoints, set_aside_damaged

ARRAYS = "state/ocdbt.process_0/d"


@pytest.fixture
def trained(uninterrupted, tmp_path):
    """A run folder of our own, with checkpoints 10 and 12, and the better of 6 and 12."""
    return shutil.copytree(uninterrupted, tmp_path / "run")


def array_file(step):
    return max((step / ARRAYS).iterdir(), key=lambda path: path.stat().st_size)


def truncate(step):
    path = array_file(step)
    path.write_bytes(path.read_bytes()[:-7])


def flip(path, place=None):
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if place is None else place] ^= 4
    path.write_bytes(data)


def empty(step):
    shutil.rmtree(step)
    step.mkdir()


DAMAGE = {
    "truncated": (truncate, f"{ARRAYS}/.* has .* bytes, .* were written"),
    "flipped bit": (lambda step: flip(array_file(step)), f"{ARRAYS}/.* is not what was written: its SHA-256 differs"),
    "missing file": (lambda step: (step / "state/manifest.ocdbt").unlink(), "state/manifest.ocdbt is missing"),
    "missing item": (lambda step: shutil.rmtree(step / "data"), "data/.* is missing"),
    "extra file": (lambda step: (step / "state/x").write_text(""), "state/x does not belong to it"),
    "empty folder": (empty, "the folder is empty"),
    "no checksums": (lambda step: (step / checksums.FILE).unlink(), "it has no checksums.json"),
    "damaged checksums": (lambda step: (step / checksums.FILE).write_text("{"), "checksums.json is damaged"),
    "damaged metadata": (lambda step: (step / checksums.METADATA).write_text(""), "_CHECKPOINT_METADATA is damaged"),
    "damaged metrics": (lambda step: (step / "metrics/metrics").write_text("{"), "metrics/metrics has 1 bytes"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_set_aside_and_the_run_goes_on_before_it(
    case, trained, digits, uninterrupted, assert_same_run, capsys
):
    damage, message = DAMAGE[case]
    damage(trained / "checkpoints" / "12")
    files = sorted(path.name for path in (trained / "checkpoints" / "12").rglob("*"))
    digits(trained)
    out = capsys.readouterr().out
    moved = trained / "checkpoints" / "damaged" / "12"
    line = next(line for line in out.splitlines() if "is damaged" in line)
    assert re.search(message, line)
    assert line.startswith("checkpoint 12 is damaged: ") and line.endswith(f"it was moved to {moved}")
    assert line in (trained / "train.log").read_text()
    assert "resumed from step 10" in out
    assert sorted(path.name for path in moved.rglob("*")) == files
    assert_same_run(uninterrupted, trained)
    damage(trained / "checkpoints" / "12")
    assert set_aside_damaged(trained)[0].endswith(f"it was moved to {moved}-2")


def test_a_flipped_bit_in_any_file_is_found(trained):
    """But for what Orbax writes as it commits, which no weight depends on; that it is there is asked for."""
    step = trained / "checkpoints" / "12"
    assert checksums.damage(step) is None
    for path in [path for path in step.rglob("*") if path.is_file()]:
        whole = path.read_bytes()
        if path not in (step / checksums.METADATA, step / checksums.COMMITTED):
            for place in (0, -1):
                flip(path, place)
                assert checksums.damage(step), path
                path.write_bytes(whole)
        path.unlink()
        assert checksums.damage(step), path
        path.write_bytes(whole)
    assert checksums.damage(step) is None


def snapshot(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_without_an_intact_one_nothing_is_touched(trained, digits):
    for step in (trained / "checkpoints").glob("[0-9]*"):
        flip(array_file(step))
    before = snapshot(trained)
    with pytest.raises(
        UserError, match=r"no checkpoint in .* is intact .*10: state/.*; 12: state/.*Nothing was changed"
    ):
        digits(trained)
    after = snapshot(trained)
    after.pop(trained / "lock"), before.pop(trained / "lock")
    assert before == after


def test_a_torn_save_leaves_nothing(trained, digits):
    checkpoints = trained / "checkpoints"
    shutil.rmtree(checkpoints / "12")
    for name in ("12.orbax-checkpoint-tmp", ".old/8", ".old"):
        shutil.copytree(checkpoints / "10", checkpoints / name, dirs_exist_ok=True)
    (trained / "metrics.jsonl").write_text((trained / "metrics.jsonl").read_text()[:-20])
    for name in (".config.json.tmp", ".metrics.jsonl.tmp", ".classes.json.tmp"):
        (trained / name).write_text("{")
    digits(trained)
    assert sorted(path.name for path in trained.iterdir()) == sorted(
        [
            "checkpoints",
            "classes.json",
            "config.json",
            "data.json",
            "lock",
            "metrics.jsonl",
            "summary.json",
            "tensorboard",
            "train.log",
        ]
    )
    assert {"10", "12"} <= {path.name for path in checkpoints.iterdir()} <= {"6", "10", "12"}


# Reading moves nothing


@pytest.mark.parametrize("case", DAMAGE)
def test_reading_a_damaged_checkpoint_is_refused(case, trained):
    damage, message = DAMAGE[case]
    damage(trained / "checkpoints" / "12")
    before = snapshot(trained)
    with pytest.raises(UserError, match=f"checkpoint 12 in .* is damaged: {message}"):
        run.open_run(trained, "12")
    assert run.open_run(trained, "10").step == 10
    assert before == snapshot(trained)


def test_the_best_is_not_chosen_past_a_damaged_checkpoint(trained):
    """It might be that one."""
    (trained / "checkpoints" / "10" / checksums.FILE).unlink()
    assert run.open_run(trained, "latest").step == 12
    with pytest.raises(UserError, match=r"checkpoint 10 in .* is damaged: it has no checksums.json"):
        run.open_run(trained)


def test_the_data_are_kept_once_for_any_number_of_processes(trained):
    """A batch is a function of the step alone, and its state does not say who reads which rows of it."""
    assert json.loads((trained / "checkpoints/12/data/metadata").read_text()) == {"next_index": 12}


def test_a_step_that_orbax_would_not_save_is_an_error(trained, digits):
    checkpoints = Checkpoints(trained, "accuracy", keep=2)
    with pytest.raises(RuntimeError, match="does not save step 11 after step 12"):
        checkpoints._save(11, {"a": 1}, None, {})
    checkpoints._saving = None
    checkpoints.close()
