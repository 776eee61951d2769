"""What a run was is kept with its checkpoints: what was lost or changed since is named, and accepted only if asked."""

import errno
import json
import os
import shutil

import numpy as np
import pytest

from attnjax.errors import UserError
from attnjax.runs import folder as run
from attnjax.runs import loop
from attnjax.runs.checkpoint import Checkpoints
from attnjax.runs.description import write_description
from attnjax.runs.experiment import Experiment
from attnjax.tasks.classification import ClassificationTask


@pytest.fixture
def trained(uninterrupted, tmp_path):
    return shutil.copytree(uninterrupted, tmp_path / "run")


def edit(workdir, *path, value):
    """Changes a field of config.json as a user would, by hand."""
    file = workdir / "config.json"
    config = json.loads(file.read_text())
    node = config
    for name in path[:-1]:
        node = node[name]
    node[path[-1]] = value
    file.write_text(json.dumps(config))


def snapshot(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "lock"}


def test_another_config_is_refused_without_config_json(trained, digits):
    (trained / "config.json").unlink()
    before = snapshot(trained)
    with pytest.raises(UserError, match=r"another config \(optimizer.learning_rate: 0.001 -> 0.5\).*accept_changes"):
        digits(trained, learning_rate=0.5)
    assert before == snapshot(trained)
    digits(trained)
    assert (trained / "config.json").is_file()


@pytest.mark.parametrize(
    ("path", "value", "change"),
    [
        (("data", "mean"), [0.7], r"data.mean: \(0.5,\) -> \(0.7,\)"),
        (("model", "widths"), [9], r"model.widths: \(8,\) -> \(9,\)"),
        (("best_metric",), "loss", "best_metric: 'accuracy' -> 'loss'"),
        (("data", "mena"), [0.7], r"data.mena: '\(absent\)' -> \(0.7,\)"),
    ],
)
def test_an_edited_config_is_refused(path, value, change, trained):
    edit(trained, *path, value=value)
    with pytest.raises(UserError, match=rf"config.json' and .* not what the run .*: {change}. Undo that, or accept"):
        run.open_run(trained)


def test_an_edited_config_is_accepted_if_asked(trained):
    edit(trained, "data", "mean", value=[0.7])
    assert run.open_run(trained, accept_changes=True).task.image_format.mean == (0.7,)


def test_fields_that_change_no_weight_may_be_edited(trained):
    edit(trained, "log_every", value=7)
    assert run.open_run(trained).config.log_every == 7


@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_classes_that_changed_are_refused(damage, trained, digits):
    classes = trained / "classes.json"
    text = classes.read_text()
    classes.unlink() if damage == "missing" else classes.write_text(text.replace("7", "6"))
    for use in (run.open_run, digits):
        with pytest.raises(UserError, match=r"classes.json is missing or was changed"):
            use(trained)


def test_changes_are_accepted_by_a_training_and_then_belong_to_it(trained, digits, capsys):
    with pytest.raises(UserError, match=r"steps: 12 -> 14"):
        digits(trained, steps=14)
    digits(trained, accept_changes=True, steps=14)
    out = capsys.readouterr().out
    assert "accepted: steps: 12 -> 14\n" in out and "resumed from step 12" in out
    assert run.open_run(trained, "latest").step == 14


def test_a_checkpoint_in_the_place_of_another_is_damaged(trained):
    (trained / "checkpoints" / "10").rename(trained / "checkpoints" / "14")
    with pytest.raises(UserError, match=r"checkpoint 14 in .* is damaged: it was saved as step 10"):
        run.open_run(trained, "latest")


@pytest.mark.parametrize(
    ("name", "value", "refused"),
    [("train content", "0", True), ("seed", "7", True), ("transforms", "{}", True), ("processes", "4", False)],
)
def test_other_data_are_refused(name, value, refused, digits, trained, monkeypatch, capsys):
    found = ClassificationTask.fingerprint
    monkeypatch.setattr(ClassificationTask, "fingerprint", lambda task: found(task) | {name: value})
    if not refused:
        digits(trained)
        return
    before = snapshot(trained)
    with pytest.raises(UserError, match=rf"{name}: .* -> {value}") as error:
        digits(trained)
    assert "\n" not in str(error.value)
    assert before == snapshot(trained)
    if name == "seed":
        digits(trained, accept_changes=True)
        assert "accepted: seed: 0 -> 7" in capsys.readouterr().out


def test_data_that_cannot_be_read_are_named(digits, tmp_path, monkeypatch):
    def gone(task):
        raise FileNotFoundError(2, "No such file or directory", "cat.png")

    monkeypatch.setattr(ClassificationTask, "fingerprint", gone)
    with pytest.raises(UserError, match=r"cannot read the data: cat.png: No such file"):
        digits(tmp_path)


# A folder without a checkpoint is new


def test_what_a_failed_start_left_does_not_matter(digits, tmp_path, uninterrupted, assert_same_run):
    digits_config = run.open_run(uninterrupted).config
    other = digits_config.copy_and_resolve_references()
    other.optimizer.learning_rate = 0.3
    write_description(tmp_path / "run", Experiment.from_config(other, tmp_path / "run"))
    (tmp_path / "run" / "metrics.jsonl").write_text("\0" * 99)
    digits(tmp_path / "run")
    assert_same_run(uninterrupted, tmp_path / "run")


@pytest.mark.parametrize("joint", [True, False])
def test_a_vocabulary_without_a_checkpoint_is_learnt_anew(joint, translation_experiment, tmp_path):
    workdir = tmp_path / "run"
    translation_experiment(joint=not joint).task.save(workdir)
    config = translation_experiment(joint=joint).config
    config.data.vocabulary.size = 50
    experiment = Experiment.from_config(config, workdir)
    assert experiment.task.vocabulary.source.get_piece_size() == 50
    files = experiment.task.save(workdir)
    assert sorted((workdir / "vocabulary").iterdir()) == sorted(files) and len(files) == (1 if joint else 2)


def test_weights_alone_are_not_resumed(untrained, uninterrupted, digits, tmp_path):
    opened = run.open_run(uninterrupted)
    untrained(Experiment.from_config(opened.config, tmp_path / "run"), tmp_path / "run")
    before = snapshot(tmp_path / "run")
    with pytest.raises(UserError, match=r"holds weights alone: start a new run from them by --config.init_from="):
        digits(tmp_path / "run")
    assert before == snapshot(tmp_path / "run")


def test_writing_weights_can_be_repeated_after_a_kill(uninterrupted, tmp_path, monkeypatch, untrained):
    experiment = run.open_run(uninterrupted).experiment
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save_weights", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run.save_weights(tmp_path / "run", experiment, experiment.create_state())
    assert untrained(experiment, tmp_path / "run").step == 0


# metrics.jsonl


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "zeros", "flipped"])
def test_lost_rows_are_restored_from_the_checkpoint(damage, trained, digits, uninterrupted, assert_same_run, capsys):
    shutil.rmtree(trained / "checkpoints" / "12")
    path = trained / "metrics.jsonl"
    data = path.read_bytes()
    contents = {
        "empty": b"",
        "cut": data[: len(data) // 3],
        "zeros": bytes(len(data)),
        "flipped": data.replace(b"0.0", b"0.1", 1),
    }
    path.unlink() if damage == "missing" else path.write_bytes(contents[damage])
    digits(trained)
    out = capsys.readouterr().out
    assert "metrics.jsonl was damaged or changed: its rows up to step 10 are restored from the checkpoint" in out
    assert_same_run(uninterrupted, trained)


# Examples that cannot be read


def unreadable(monkeypatch, index, length):
    """Lets the load of one image of the split of this length fail."""
    from attnjax.data.images import pipeline

    load = pipeline._load

    def failing(source, indices):
        if len(source) == length and index in indices:
            raise UserError("cannot read image a.png: it is truncated")
        return load(source, indices)

    monkeypatch.setattr(pipeline, "_load", failing)


def image_of_step(step):
    return np.random.default_rng((0, 0, 0)).permutation(1293)[(step - 1) * 32]


def test_an_unreadable_image_ends_a_run_after_saving_it(
    digits, tmp_path, monkeypatch, uninterrupted, assert_same_run, capsys
):
    with monkeypatch.context() as patch:
        unreadable(patch, image_of_step(8), 1293)
        for _ in range(2):
            with pytest.raises(
                UserError, match=r"a.png: it is truncated; step 7 is saved: repair the file.*skip_corrupt"
            ):
                digits(tmp_path)
    found = ClassificationTask.fingerprint
    monkeypatch.setattr(ClassificationTask, "fingerprint", lambda task: found(task) | {"train content": "repaired"})
    digits(tmp_path)
    out = capsys.readouterr().out
    assert "-> repaired" in out and "accepted: it had ended: cannot read image a.png" in out
    assert "resumed from step 7" in out
    monkeypatch.undo()
    assert_same_run(uninterrupted, tmp_path)


def test_corrupt_images_may_be_skipped_from_then_on(trained, digits, capsys):
    config = run.open_run(trained).config
    config.data.skip_corrupt = True
    loop.train(config, trained)
    assert "accepted: data.skip_corrupt: False -> True" in capsys.readouterr().out


def test_an_unreadable_image_in_validation_keeps_the_step(
    digits, tmp_path, monkeypatch, uninterrupted, assert_same_run, capsys
):
    with monkeypatch.context() as patch:
        unreadable(patch, 5, 144)
        with pytest.raises(UserError, match=r"a.png: it is truncated; step 6 is saved"):
            digits(tmp_path)
    digits(tmp_path)
    assert "resumed from step 6" in capsys.readouterr().out
    assert_same_run(uninterrupted, tmp_path)


def test_a_batch_without_an_example_is_an_error(digits, tmp_path, monkeypatch):
    from attnjax.data.images import pipeline

    load = pipeline._load

    def nothing(source, indices):
        images, labels, mask = load(source, indices)
        return images, labels, mask & False

    monkeypatch.setattr(pipeline, "_load", nothing)
    with pytest.raises(UserError, match=r"step 1: none of the examples of its batch could be read"):
        digits(tmp_path)


def test_an_evaluation_is_shown_before_it_is_written(trained, entry, monkeypatch):
    def read_only(*_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("attnjax.files.write_json", read_only)
    code, out, err = entry("evaluate", "--workdir", trained)
    assert code == 2 and "test accuracy 0." in out
    assert err.startswith(f"error: cannot write to '{trained}': Read-only file system")
