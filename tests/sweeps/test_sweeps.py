import io
import json
import os
import signal
import types
from pathlib import Path

import pytest
from rich.console import Console

from attnjax import config as config_lib
from attnjax import sweeps
from attnjax.errors import UserError
from attnjax.formatting import MAX_FILE_NAME, file_name, short_names
from attnjax.sweeps import local, slurm, trials
from attnjax.sweeps import runner as runner_lib

# Processes that the tests kill leave pipes open.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")

EXPERIMENTS = Path(__file__).parent.parent.parent / "experiments"


def test_building_blocks_of_sweeps():
    assert sweeps.values("a.b", [1, 2]) == [{"a.b": 1}, {"a.b": 2}]
    assert sweeps.seeds(2) == [{"seed": 0}, {"seed": 1}]
    assert sweeps.product(sweeps.values("a", [1, 2]), sweeps.values("b", "xy")) == [
        {"a": 1, "b": "x"},
        {"a": 1, "b": "y"},
        {"a": 2, "b": "x"},
        {"a": 2, "b": "y"},
    ]
    assert sweeps.zip(sweeps.values("a", [1, 2]), sweeps.values("b", [3, 4])) == [{"a": 1, "b": 3}, {"a": 2, "b": 4}]
    assert sweeps.chain([{}], sweeps.seeds(1)) == [{}, {"seed": 0}]
    assert sweeps.product() == [{}]
    with pytest.raises(ValueError):
        sweeps.zip(sweeps.seeds(2), sweeps.seeds(3))


def plan(file, folder, given=(), evaluate=""):
    return trials.plan(str(file), folder, given, evaluate, EXPERIMENTS)


def write(path, sweep):
    path.write_text(
        "from attnjax import config, models, sweeps\n"
        "def get_config():\n    found = config.classification()\n    found.model = models.fields('mlp')\n"
        f"    return found\ndef sweep():\n    return {sweep}\n"
    )
    return path


def names(path, sweep):
    return [trial.name for trial in plan(write(path, sweep), path.parent / "sweep").trials]


def test_trials_are_named_after_their_overrides(tmp_path):
    file = tmp_path / "x.py"
    assert names(file, "sweeps.product(sweeps.values('model.widths', [(8, 4), ()]), sweeps.seeds(1))") == [
        "widths=8-4,seed=0",
        "widths=none,seed=0",
    ]
    assert names(file, "[{}, {'data.source': 'folder:/a b/c'}, {'optimizer.name': 'sgd', 'optimizer.b1': 0.5}]") == [
        "base",
        "source=folder-a-b-c",
        "name=sgd,b1=0.5",
    ]
    assert names(file, "[{'data.augment.scale': (0.1, 1.0), 'data.train': 'a[:5%]'}]") == ["scale=0.1-1.0,train=a-5"]
    assert all(len(name.encode()) <= MAX_FILE_NAME for name in names(file, "[{'data.source': 'ü' * 110}]"))
    long = names(file, "[{'data.source': 'x' * 190 + 'a'}, {'data.source': 'x' * 190 + 'b'}]")
    assert len(set(long)) == 2 and all(len(name) == MAX_FILE_NAME for name in long)


def test_short_names_are_unique():
    assert short_names(["model.encoder.depth", "model.text.depth", "seed"]) == {
        "model.encoder.depth": "encoder.depth",
        "model.text.depth": "text.depth",
        "seed": "seed",
    }


def test_file_names_are_plain_and_different(tmp_path):
    assert file_name("test,latest,decoding.beam_size=1") == "test,latest,decoding.beam_size=1"
    texts = ["a/b", "a b", "a:b", "../a-b", "", "x" * 300, "x" * 301, "ü" * 200, "\udce9"]
    names = [file_name(text) for text in texts]
    assert len(set(names)) == len(texts) and all(len(name.encode()) <= MAX_FILE_NAME for name in names)
    assert not any(set(name) & set("/ \n") for name in names)


BAD = {
    "no field": ("[{'model.wdths': (8,)}]", "no field 'wdths', did you mean 'widths'"),
    "type": ("[{'model.widths': 8}]", "expected tuple"),
    "empty": ("[]", "has no trials"),
    "twice": ("[{'seed': 1}, {'seed': 1}]", "two trials of the sweep have the same name: seed=1"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_sweeps_are_refused_before_anything_runs(case, tmp_path, entry):
    sweep, message = BAD[case]
    folder = tmp_path / "sweep"
    code, _, err = entry("sweep", "--config", write(tmp_path / "x.py", sweep), "--workdir", folder)
    assert code == 2 and message in err and err.count("\n") == 1
    assert not folder.exists()


def test_other_mistakes_are_one_line(tmp_path, entry, config_file, monkeypatch):
    monkeypatch.setenv("PATH", "")
    config = Path(config_lib.__file__).parent.parent.parent / "configs" / "digits_lenet.py"
    for arguments, message in (
        (["--config", config], "has no function sweep"),
        (["--config", config_file, "--jobs", 0], "--jobs=0"),
        (["--config", config_file, "--config.data.test=", "--evaluate"], "data.test is empty"),
        (["--config", config_file, "--executor", "slurm"], "squeue not found"),
        (["--config", config_file, "--evaluate", "bset"], "--evaluate=bset: did you mean 'best'"),
    ):
        code, _, err = entry("sweep", "--workdir", tmp_path / "sweep", *arguments)
        assert code == 2 and message in err and err.count("\n") == 1


def test_a_folder_takes_more_trials_but_no_other_sweep(tmp_path):
    file, folder = tmp_path / "x.py", tmp_path / "sweep"
    plan(write(file, "sweeps.seeds(2)"), folder).save()
    plan(write(file, "sweeps.seeds(3)"), folder).save()
    assert list(json.loads((folder / trials.FILE).read_text())["trials"]) == ["seed=0", "seed=1", "seed=2"]
    with pytest.raises(UserError, match="sweep with different overrides"):
        plan(file, folder, given=[("steps", "5")]).save()


def test_what_cannot_be_read_is_named_and_counts_as_missing(tmp_path):
    """An empty summary and sweep.json, a torn evaluation, a line of NULs in the metrics."""
    file, folder = write(tmp_path / "x.py", "sweeps.seeds(1)"), tmp_path / "sweep"
    sweep = plan(file, folder, evaluate="best")
    assert sweep.save() == []
    (folder / "sweep.json").write_text("")
    assert "sweep.json' is damaged" in sweep.save()[0] and "seed=0" in (folder / "sweep.json").read_text()
    run, trial = folder / "seed=0", sweep.trials[0]
    run.mkdir()
    (run / "metrics.jsonl").write_bytes(b'{"step": 3, "split": "train", "seconds": 1}\n' + b"\0" * 9 + b"\n")
    (run / "summary.json").write_text('{"steps": 9, "finished": true}')
    (run / "evaluation_test.json").write_text('{"checkpoint": "be')
    progress = sweep.progress(trial)
    assert (progress.state, progress.step, progress.steps) == ("stopped", 3, 9)
    assert ["metrics.jsonl" in progress.damage[0], "evaluation_test.json" in progress.damage[1]] == [True, True]
    assert [Path(command[1]).name for command in sweep.commands(trial)] == ["evaluate.py"]
    (run / "summary.json").write_text("")
    assert [Path(command[1]).name for command in sweep.commands(trial)] == ["train.py", "evaluate.py"]


def test_a_run_s_folder_is_no_sweep_s(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="is a run's folder: a sweep needs one of its own"):
        plan(write(tmp_path / "x.py", "sweeps.seeds(1)"), tmp_path / "run").save()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("partition", "gpu\ntouch X #", r"--slurm\.partition='gpu\\ntouch X #': it should be a name"),
        ("constraint", "a b", "it should be a name"),
        ("time", 0, "1 or more"),
        ("memory", -1, "0 or more"),
    ],
)
def test_slurm_s_options_are_only_values(field, value, message):
    assert slurm.Options(constraint="[a100*2&h100]|(v100)", partition="gpu,cpu")
    with pytest.raises(UserError, match=message):
        slurm.Options(**{field: value})


def test_slurm_needs_a_folder_that_is_one_line_and_readable_jobs(tmp_path):
    file = write(tmp_path / "x.py", "sweeps.seeds(1)")
    sweep = plan(file, tmp_path / "a\ntouch X")
    with pytest.raises(UserError, match="without line breaks in its name"):
        slurm.Slurm(sweep, sweep.trials, slurm.Options(), 1)
    sweep = plan(file, tmp_path / "sweep")
    sweep.save()
    (tmp_path / "sweep" / slurm.JOBS_FILE).write_text('{"seed=0": 7}')
    with pytest.raises(UserError, match=r"jobs\.json' is damaged: seed=0 is not of type str\. It names the jobs"):
        slurm.Slurm(sweep, sweep.trials, slurm.Options(), 1)


def test_a_dry_run_shows_the_commands_and_writes_nothing(tmp_path, entry, config_file):
    folder = tmp_path / "sweep"
    code, out, _ = entry("sweep", "--config", config_file, "--workdir", folder, "--dry_run", "--config.steps=5")
    assert code == 0 and out.count("train.py") == 12 and not folder.exists()
    assert f"{folder}/widths=8,learning_rate=0.001,seed=0 --config.steps=5 '--config.model.widths=(8,)'" in out


@pytest.mark.parametrize(
    ("jobs", "cores", "gpus", "shares"),
    [
        (1, [0, 1, 2], None, [([0, 1, 2], None)]),
        (2, [0, 1, 2, 3], "4,5", [([0, 1], "4"), ([2, 3], "5")]),
        (3, [0, 1], "7", [([0], "7"), ([1], "7"), ([0], "7")]),
        (2, [4, 6, 8], "", [([4], None), ([6, 8], None)]),
    ],
)
def test_jobs_share_cores_and_gpus(jobs, cores, gpus, shares, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(cores))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if gpus is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
    assert [(list(own), gpu) for own, gpu in local.slots(jobs)] == shares


def test_slurm_may_not_answer_for_a_while_once_it_has(tmp_path, monkeypatch):
    sweep, now = plan(write(tmp_path / "x.py", "sweeps.seeds(1)"), tmp_path / "sweep"), [0.0]

    def silent():
        raise UserError("SLURM does not answer")

    def later(seconds):
        now[0] += seconds
        return executor.poll()

    monkeypatch.setattr(slurm, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(slurm.Slurm, "_submit", lambda self, trials: None)
    executor = slurm.Slurm(sweep, sweep.trials, slurm.Options(), at_once=1)
    monkeypatch.setattr(slurm, "_queue", silent)
    with pytest.raises(UserError, match="does not answer"):
        executor.poll()
    monkeypatch.setattr(slurm, "_queue", dict)
    assert not later(10)
    monkeypatch.setattr(slurm, "_queue", silent)
    assert not later(10) and not later(slurm.MAX_SILENCE - 20)
    with pytest.raises(UserError, match="does not answer"):
        later(20)


@pytest.mark.sweeps
def test_every_trial_is_trained_once_despite_kills(process, config_file, tmp_path, assert_each_trained_once, watch):
    """A trial gets SIGKILL, then the runner."""
    folder = tmp_path / "sweep"
    arguments = ["--config", config_file, "--workdir", folder, "--jobs", 2]
    runner = process("sweep", *arguments)
    watch.wait_for(lambda: any(count > 2 for count in watch.steps_of(folder).values()))
    os.kill(watch.wait_for(lambda: watch.children(folder))[0], signal.SIGKILL)
    watch.wait_for(lambda: sum((run / "summary.json").exists() for run in folder.iterdir()) > 3)
    runner.kill()
    runner.communicate()
    runner = process("sweep", *arguments)
    out, err = runner.communicate(timeout=300)
    assert runner.returncode == 0, out + err
    assert not watch.children(folder)
    runs = assert_each_trained_once(folder)
    starts = [(run / "train.log").read_text().count(" new run, seed") for run in runs]
    assert max(starts) <= 2
    again = process("sweep", *arguments)
    out, err = again.communicate(timeout=60)
    assert again.returncode == 0 and "running" not in out + err


def test_a_failed_trial_does_not_stop_the_rest_and_is_retried_on_request(entry, tmp_path, config_file):
    file, folder = tmp_path / "x.py", tmp_path / "sweep"
    file.write_text(
        config_file.read_text() + "\ndef sweep():\n    return sweeps.values('data.train', ['nowhere', 'train[:50%]'])\n"
    )
    arguments = ["--config", file, "--workdir", folder, "--config.steps=20", "--evaluate"]
    code, out, err = entry("sweep", *arguments)
    assert code == 1 and "failed: train=nowhere: error: " in out and "--retry" in out, out + err
    assert (folder / "train=train-50" / "evaluation_test.json").is_file()
    log = folder / "logs" / "train=nowhere.log"
    before = log.read_text()
    code, out, _ = entry("sweep", *arguments)
    assert code == 1 and "failed: train=nowhere" in out
    assert log.read_text() == before
    entry("sweep", *arguments, "--retry")
    assert log.read_text() == 2 * before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_running_trials(number, code, process, entry, config_file, tmp_path, watch):
    folder = tmp_path / "sweep"
    arguments = ["--config", config_file, "--workdir", folder, "--config.steps=100000"]
    runner = process("sweep", *arguments, "--jobs", 2)
    watch.wait_for(lambda: len([count for count in watch.steps_of(folder).values() if count > 2]) == 2)
    refused, _, err = entry("sweep", *arguments)
    assert refused == 2 and "is in use by process" in err
    runner.send_signal(number)
    out, err = runner.communicate(timeout=60)
    assert runner.returncode == code and "run the same command again to resume" in out, out + err
    assert not watch.children(folder)
    logs = [path.read_text() for path in (folder / "logs").glob("*.log")]
    assert len(logs) == 2 and all("which is saved" in text for text in logs)


def test_the_live_table_prefers_running_and_failed_trials(tmp_path):
    """On a terminal with fewer lines than there are trials."""
    sweep = plan(write(tmp_path / "x.py", "sweeps.seeds(20)"), tmp_path / "sweep")
    sweep.save()
    sweep.fail(sweep.trials[7], "error: no data")

    class Executor:
        polls = 0

        def poll(self):
            self.polls += 1
            return self.polls > 1

        def state(self, trial):
            return "running" if trial is sweep.trials[19] else None

    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100, height=12, highlight=False)
    assert runner_lib.run(sweep, Executor(), console) == 1
    text = out.getvalue()
    assert "0 of 20 trials finished" in text and "and 14 more" in text
    assert "seed=19" in text and "seed=7 " in text and "seed=6" not in text
    assert "failed: seed=7: error: no data" in text
