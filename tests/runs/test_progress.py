"""What a training says while it runs, and when it is evaluated."""

import pytest

from attnjax import config as config_lib
from attnjax.runs import log as log_lib
from attnjax.runs.checkpoint import Checkpoints
from attnjax.runs.loop import evaluation_steps


@pytest.mark.parametrize(
    ("eval_every", "log_every", "steps_per_epoch", "expected"),
    [(0, 50, 2, 50), (0, 50, 3, 51), (0, 50, 200, 200), (7, 50, 2, 7), (0, 1, 1, 1)],
)
def test_few_images_are_not_validated_at_every_epoch(eval_every, log_every, steps_per_epoch, expected):
    config = config_lib.classification()
    config.eval_every, config.log_every = eval_every, log_every
    assert evaluation_steps(config, steps_per_epoch) == expected


def test_there_is_a_train_line_at_every_evaluation(uninterrupted, rows):
    assert [row["step"] for row in rows(uninterrupted)] == [5, 6, 10, 12]
    assert [row["step"] for row in rows(uninterrupted, "validation")] == [6, 12]
    text = (uninterrupted / "train.log").read_text()
    assert text.index("new run, seed 0") < text.index("compiling ") < text.index("step 5/12")


def test_plain_lines_have_the_time_left(tmp_path, monkeypatch, capsys):
    log, now = log_lib.RunLog(tmp_path, 0, 100), [0.0]
    monkeypatch.setattr(log_lib.time, "perf_counter", lambda: now[0])
    for step, seconds in ((10, 100.0), (20, 130.0), (100, 370.0)):
        now[0] = seconds
        log.write(step, "train", {"loss": 1.0})
    log.close()
    ends = ["loss 1", "loss 1  0:04:00 left", "loss 1  0:00:00 left"]
    assert all(line.endswith(end) for line, end in zip(capsys.readouterr().out.splitlines(), ends, strict=True))


def test_a_folder_s_name_is_no_markup(tmp_path, capsys):
    log = log_lib.RunLog(tmp_path, 0, 1)
    log.table({"run folder": "runs/a[/y]"})
    log.close()
    assert "runs/a[/y]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"save_minutes": 1e-6, "keep_checkpoints": 1}, [*range(1, 13)]),
        ({"save_minutes": 0, "keep_checkpoints": 1}, [6, 12]),
        ({"save_minutes": 10, "keep_checkpoints": 1}, [6, 12]),
        ({"save_minutes": 1e-6, "keep_checkpoints": 2}, [6, 12]),  # another step would enter `--checkpoint=average`
    ],
)
def test_checkpoints_are_spaced_by_time_too(digits, tmp_path, monkeypatch, fields, expected):
    saved, save = [], Checkpoints.save

    def note(self, step, *arguments, **options):
        saved.append(step)
        save(self, step, *arguments, **options)

    monkeypatch.setattr(Checkpoints, "save", note)
    digits(tmp_path, save_every=0, **fields)
    assert saved == expected
