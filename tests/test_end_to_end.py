"""The entry points as a user runs them, on the embedded digits."""

import json
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from attnjax.runs.folder import open_run

CONFIG = Path(__file__).parent.parent / "configs" / "digits_vit.py"
# Dropout, stochastic depth, augmentation, mixing and averaging on, so that every random stream must survive a stop.
TINY = [
    "--config.steps=60",
    "--config.log_every=20",
    "--config.eval_every=20",
    "--config.save_every=5",
    "--config.batch_size=32",
    "--config.ema_decay=0.9",
    "--config.model.width=16",
    "--config.model.mlp_dim=16",
    "--config.model.depth=2",
    "--config.model.dropout=0.1",
    "--config.model.drop_path=0.1",
    "--config.data.augment.mixup=0.2",
    "--config.data.augment.erase=0.2",
    "--config.optimizer.warmup_steps=5",
]


@pytest.fixture(scope="module")
def output(tmp_path_factory, process):
    """The run folder that the tests below look into, and what its training printed."""
    workdir = tmp_path_factory.mktemp("runs") / "trained"
    return workdir, finish(process("train", "--config", CONFIG, "--workdir", workdir, *TINY))


@pytest.fixture(scope="module")
def trained(output):
    return output[0]


def finish(started):
    out, err = started.communicate(timeout=300)
    assert started.returncode == 0, err
    return out


def same_weights(one, other):
    a, b = open_run(one, "latest"), open_run(other, "latest")
    assert a.step == b.step == 60
    return all(np.array_equal(x, y) for x, y in zip(*map(jax.tree.leaves, (a.params, b.params)), strict=True))


def test_a_run_says_what_it_does(output, rows):
    trained, out = output
    for line in ("devices     1 x cpu", "block*", "train       1,293 images of 10", "new run, seed 0"):
        assert line in out
    assert "validation, best checkpoint" in out and "images_per_second" in out
    assert [row["step"] for row in rows(trained)] == [20, 40, 60]
    assert [row["step"] for row in rows(trained, "validation")] == [20, 40, 60]
    assert rows(trained)[-1]["loss"] < rows(trained)[0]["loss"]
    kept = {int(path.name) for path in (trained / "checkpoints").glob("[0-9]*")}
    best = max(rows(trained, "validation"), key=lambda row: -row["loss"])["step"]
    assert kept == {60, best}
    assert list((trained / "tensorboard").iterdir()) and "step 60/60" in (trained / "train.log").read_text()


def test_the_same_seed_gives_the_same_weights_and_another_does_not(trained, process, tmp_path):
    again = process("train", "--config", CONFIG, "--workdir", tmp_path / "again", *TINY)
    other = process("train", "--config", CONFIG, "--workdir", tmp_path / "other", *TINY, "--config.seed=1")
    finish(again), finish(other)
    assert same_weights(trained, tmp_path / "again")
    assert not same_weights(trained, tmp_path / "other")


def test_killed_and_resumed_gives_the_same_bits(trained, process, tmp_path, rows):
    workdir = tmp_path / "killed"
    for saved in (10, 35):
        running = process("train", "--config", CONFIG, "--workdir", workdir, *TINY)
        while running.poll() is None and not (workdir / "checkpoints" / str(saved)).is_dir():
            time.sleep(0.005)
        running.send_signal(signal.SIGKILL)
        running.communicate()
        assert running.returncode == -signal.SIGKILL, "it ended before it was killed"
    out = finish(process("train", "--workdir", workdir))
    assert "resumed from step" in out and "new run" not in out
    assert same_weights(trained, workdir)
    assert [row["step"] for row in rows(workdir)] == [row["step"] for row in rows(trained)]
    assert rows(workdir)[-1]["loss"] == rows(trained)[-1]["loss"]


def test_a_finished_run_is_left_as_it_is(trained, entry):
    before = open_run(trained, "latest")
    code, out, _ = entry("train", "--workdir", trained)
    assert code == 0 and "resumed from step 60" in out
    after = open_run(trained, "latest")
    assert jax.tree.all(jax.tree.map(np.array_equal, before.params, after.params))


@pytest.mark.parametrize("batch", [360, 56, 8])
def test_every_example_is_evaluated_once(trained, entry, batch):
    code, _, _ = entry("evaluate", "--workdir", trained, f"--config.eval_batch_size={batch}")
    assert code == 0
    result = json.loads((trained / "evaluation_test.json").read_text())
    correct = result["accuracy"] * 360
    assert result["images"] == 360 and correct == pytest.approx(round(correct), abs=1e-3)
    assert result["loss"] == pytest.approx(evaluate_by_hand(trained), rel=1e-4)


def test_overrides_and_checkpoints_belong_to_an_evaluation_s_record_and_name(trained, entry):
    assert entry("evaluate", "--workdir", trained)[0] == 0
    own = (trained / "evaluation_test.json").read_bytes()
    code, out, err = entry("evaluate", "--workdir", trained, "--config.data.mean=(0.1,)", "--checkpoint", 60)
    assert code == 0 and "with data.mean=(0.1,)" in out, err
    (path,) = trained.glob("evaluation_test,60,data.mean=-0.1*.json")
    record = json.loads(path.read_text())
    assert record["overrides"] == {"data.mean": [0.1]} and record["checkpoint"] == "60" and "overrides" not in str(own)
    assert record["loss"] != json.loads(own)["loss"]
    # The run's own value, and one that only spreads the work, are no other evaluation.
    assert entry("evaluate", "--workdir", trained, "--config.data.mean=(0.5,)", "--config.eval_batch_size=72")[0] == 0
    assert json.loads((trained / "evaluation_test.json").read_text()).keys() == json.loads(own).keys()


@pytest.mark.parametrize("override", ["model.depth=1", "model.num_heads=2", "data.channels=3", "task=translation"])
def test_a_run_is_evaluated_with_its_own_model(override, trained, entry):
    before = {path.name: path.read_bytes() for path in trained.glob("evaluation*")}
    code, _, err = entry("evaluate", "--workdir", trained, f"--config.{override}")
    assert code == 2 and err.count("\n") == 1 and "the run's weights are those of its own model" in err
    assert before == {path.name: path.read_bytes() for path in trained.glob("evaluation*")}


def evaluate_by_hand(workdir):
    run = open_run(workdir)
    images, labels, _ = run.task.data.open("test").load(np.arange(360))
    logits = run.objective.logits(run.params, run.model_state, (np.stack(images) / 255 - 0.5) / 0.5)
    return float(-jax.nn.log_softmax(logits)[np.arange(360), labels].mean())


def test_predict_gives_the_five_likeliest(trained, entry, tmp_path):
    from PIL import Image

    Image.new("RGB", (20, 16), "white").save(tmp_path / "a.png")
    code, out, _ = entry("predict", tmp_path / "a.png", tmp_path / "a.png", "--workdir", trained)
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == str(tmp_path / "a.png") and len(lines) == 12
    probabilities = [float(line.split("%")[0]) for line in lines[1:6]]
    assert probabilities == sorted(probabilities, reverse=True) and 50 < sum(probabilities) <= 100.01


def test_figures_are_drawn(trained, entry):
    code, out, _ = entry("figures", "--workdir", trained, "--images", 2)
    assert code == 0
    for name in ("learning_curve.png", "attention.png"):
        assert (trained / "figures" / name).stat().st_size > 10_000 and name in out


def test_a_new_run_from_old_weights_is_not_a_resume(trained, entry, tmp_path):
    changes = [f"--config.init_from={trained}", "--config.data.image_size=(12,12)", "--config.steps=1"]
    code, out, err = entry("train", "--config", CONFIG, "--workdir", tmp_path / "new", *TINY, *changes)
    assert code == 2 and "warmup_steps" in err  # 5 steps of warm-up, 1 step
    changes.append("--config.optimizer.warmup_steps=0")
    code, out, err = entry("train", "--config", CONFIG, "--workdir", tmp_path / "new", *TINY, *changes)
    assert code == 0, err
    assert f"initialised from {trained}" in out and "4x4" in out and "6x6" in out and "resumed" not in out


BAD = {
    "misspelt override": (["--config.optimizer.learning_rat=1"], "did you mean 'learning_rate'"),
    "ill-typed override": (["--config.batch_size=large"], "expected int"),
    "unknown source": (["--config.data.source=tdfs:digits"], "tfds:NAME, folder:PATH or idx:PATH"),
    "missing folder": (["--config.data.source=folder:/nowhere"], "/nowhere"),
    "unknown split": (["--config.data.train=tran"], "train"),
    "indivisible image": (["--config.data.image_size=(9,8)"], "9x8 is not divisible by the patch size 2"),
    "unknown pool": (["--config.model.pool=max"], "average, token"),
    "unknown model": (["--config.model.name=vjt"], "did you mean 'vit'"),
    "unknown optimizer": (["--config.optimizer.name=sdg"], "did you mean 'sgd'"),
    "unknown augmentation": (["--config.data.augment.crop=rnd"], "crop"),
    "missing weights": (["--config.init_from=/nowhere.npz"], "/nowhere.npz"),
    "indivisible batch": (["--config.batch_size=12"], "batch_size=12 does not divide over 8 devices"),
    "nothing to do": (["--config.epochs=0"], "one must be positive"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_exit_2(case, entry, tmp_path):
    arguments, message = BAD[case]
    code, _, err = entry("train", "--config", CONFIG, "--workdir", tmp_path / "run", *arguments)
    assert code == 2
    assert err.startswith("error: ") and err.count("\n") == 1 and message in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", CONFIG, "--config.seed=5"], "another config (batch_size: 32 -> 64"),
        (["--config", CONFIG.parent / "digits_lenet.py"], "another config"),
    ],
)
def test_a_run_folder_of_another_config_is_refused(trained, entry, arguments, message):
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    code, _, err = entry("train", "--workdir", trained, *arguments)
    assert code == 2 and message in err and err.count("\n") == 1
    assert before == {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}


def test_missing_runs_images_and_checkpoints_are_named(trained, entry, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    for name, arguments, message in [
        ("train", ["--workdir", tmp_path / "none"], "--config is needed"),
        ("evaluate", ["--workdir", tmp_path / "none"], "no run folder"),
        ("evaluate", ["--workdir", tmp_path], "it has no config.json"),
        ("evaluate", ["--workdir", trained, "--checkpoint", "7"], "Known: best, latest"),
        ("evaluate", ["--workdir", trained, "--split", "tset"], "tset"),
        ("predict", ["--workdir", trained, tmp_path / "no.png"], "no image file"),
        ("predict", ["--workdir", trained, tmp_path / "broken.png"], "broken.png"),
    ]:
        code, _, err = entry(name, *arguments)
        assert code == 2 and message in err and err.count("\n") == 1, (name, arguments, err)


def test_an_unknown_flag_is_refused(process):
    running = process("train", "--confg", "x", "--workdir", "y")
    _, err = running.communicate()
    assert running.returncode == 2 and "--confg" in err


def test_stopped_before_its_first_checkpoint_it_starts_from_the_old_weights_again(trained, process, tmp_path):
    workdir = tmp_path / "new"
    arguments = ["--config", CONFIG, "--workdir", workdir, *TINY, f"--config.init_from={trained}"]
    running = process("train", *arguments)
    while running.poll() is None and not (workdir / "config.json").exists():
        time.sleep(0.005)
    running.kill()
    running.communicate()
    assert not list((workdir / "checkpoints").glob("[0-9]*")), "it was stopped too late"
    assert f"initialised from {trained}" in finish(process("train", *arguments))
