"""Reports on run folders written by hand, without training."""

import csv
import json
import re

import numpy as np
import pytest

from attnjax import config as config_lib
from attnjax import models
from attnjax.errors import UserError
from attnjax.reports import figures, render
from attnjax.reports.runs import curve_notes, curves, read

rng = np.random.default_rng(0)


@pytest.fixture
def write_run(tmp_path):
    """Writes a run folder: write_run(name, accuracies, **overrides) -> its path."""

    def write(name, accuracies, test=None, loss=None, summary=True, finished=True, model="mlp", **overrides):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        config = config_lib.classification()
        config.model = models.fields(model)
        for path, value in overrides.items():
            config_lib.override(config, [(path.replace("__", "."), str(value))])
        config_lib.save(config, folder / "config.json")
        rows = []
        for i, accuracy in enumerate(accuracies, start=1):
            values = {"loss": 1.0 / i if loss is None else loss, "seconds": 60.0 * i}
            rows.append({"step": 10 * i, "split": "train", **values})
            rows.append({"step": 10 * i, "split": "validation", "accuracy": accuracy, **values})
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 99, "torn')
        if summary:
            numbers = {"steps": 30, "parameters": 1234, "devices": "a CPU", "finished": finished}
            (folder / "summary.json").write_text(json.dumps(numbers))
        if test is not None:
            result = {"split": "test", "images": 360, "checkpoint": "best", "step": 20, "accuracy": test, "loss": 0.5}
            (folder / "evaluation_test.json").write_text(json.dumps(result))
        return folder

    return write


@pytest.fixture
def swept(write_run, tmp_path):
    """Two learning rates, three seeds; the better one on validation is worse on the test split."""
    accuracies = {0.1: rng.uniform(0.7, 0.8, (3, 3)), 0.01: rng.uniform(0.5, 0.6, (3, 3))}
    for rate, values in accuracies.items():
        for seed in range(3):
            test = 0.3 + seed / 7 if rate == 0.1 else 0.9 - seed / 9
            write_run(f"rate={rate},seed={seed}", values[seed].tolist(), test, optimizer__learning_rate=rate, seed=seed)
    return tmp_path / "runs", accuracies


def test_mean_deviation_and_the_best_group_on_validation(swept):
    folder, accuracies = swept
    report = read([folder])
    assert report.settings == {"optimizer.learning_rate": "learning_rate"}
    assert [group.settings["learning_rate"] for group in report.groups] == [0.01, 0.1]
    assert report.metrics == ["validation accuracy", "test accuracy", "test loss"]
    for group in report.groups:
        best = accuracies[group.settings["learning_rate"]].max(1)
        assert group.mean("validation accuracy") == np.mean(best)
        assert group.deviation("validation accuracy") == np.std(best, ddof=1)
    test = [0.3 + seed / 7 for seed in range(3)]
    assert report.best is report.groups[1] and report.groups[1].mean("test accuracy") == np.mean(test)
    assert report.groups[0].mean("test accuracy") > report.groups[1].mean("test accuracy")
    line = render.to_markdown(report).splitlines()[3]
    assert line.startswith("| **0.1** | **3** |")
    assert f"{np.mean(test):.4f} ± {np.std(test, ddof=1):.4f}" in line and "1,234" in line and "0:03:00" in line


def test_csv_has_every_run_in_full_precision(swept):
    folder, accuracies = swept
    lines = list(csv.DictReader(render.to_csv(read([folder])).splitlines()))
    assert len(lines) == 6
    for line in lines:
        rate, seed = float(line["optimizer.learning_rate"]), int(line["seed"])
        assert float(line["validation accuracy"]) == accuracies[rate][seed].max()
        assert (line["parameters"], line["seconds"], line["steps"]) == ("1234", "180.0", "30")


def test_lower_loss_is_better(write_run, tmp_path):
    for rate, loss in ((0.1, 0.4), (0.01, 0.2)):
        write_run(f"{rate}", [0.5], loss=loss, best_metric="loss", optimizer__learning_rate=rate)
    report = read([tmp_path / "runs"])
    assert report.best.settings == {"learning_rate": 0.01}


def test_curves_have_the_steps_that_all_seeds_have(write_run, tmp_path):
    write_run("a", [0.1, 0.2, 0.3], seed=0)
    write_run("b", [0.3, 0.6], seed=1)
    panels = curves(read([tmp_path / "runs"]))
    steps, mean, deviation = panels["validation accuracy"]["base"]
    np.testing.assert_array_equal(steps, [10, 20])
    np.testing.assert_allclose(mean, [0.2, 0.4])
    np.testing.assert_allclose(deviation, [np.std([0.1, 0.3], ddof=1), np.std([0.2, 0.6], ddof=1)])
    np.testing.assert_allclose(panels["train loss"]["base"][1], [1.0, 0.5])


def test_only_the_best_of_many_groups_have_curves(write_run, tmp_path):
    for i in range(12):
        write_run(f"{i}", [i / 12], optimizer__learning_rate=1.0 + i)
    report = read([tmp_path / "runs"])
    assert [group.settings["learning_rate"] for group in report.groups] == [1.0 + i for i in range(12)]
    labels = curves(report)["validation accuracy"]
    assert list(labels) == [f"learning_rate={1.0 + i}" for i in range(11, 1, -1)]
    assert "10 of 12 groups" in " ".join(curve_notes(report))


def test_settings_of_most_groups_are_a_note_and_the_base_is_first(write_run, tmp_path):
    for i, changes in enumerate([{"optimizer__learning_rate": 0.5}, {}, {"batch_size": 64}, {"batch_size": 32}]):
        write_run(f"{i}", [0.5], **changes)
    report = read([tmp_path / "runs"])
    assert report.usual == {"learning_rate": 0.001}
    text = render.to_markdown(report)
    assert "Empty cells mean: learning_rate=0.001." in text
    assert [line.split(" | ")[:2] for line in text.splitlines()[2:6]] == [
        ["| **128**", "**0.5**"],
        ["| 128", ""],
        ["| 64", ""],
        ["| 32", ""],
    ]
    write_run("4", [0.5], seed=1, label_smoothing=0.1)
    report = read([tmp_path / "runs"])
    assert [report.label(group) for group in report.groups] == [
        "base",
        "learning_rate=0.5",
        "batch_size=64",
        "batch_size=32",
        "label_smoothing=0.1",
    ]


def test_runs_of_any_kind(write_run, tmp_path):
    """Another model, an unfinished run, one without a summary, one that was never validated."""
    write_run("mlp", [0.5], test=0.6, optimizer__learning_rate=0.1)
    write_run("lenet", [0.6], model="lenet", optimizer__learning_rate=0.1)
    write_run("stopped", [0.9], finished=False, model="lenet", seed=1)
    write_run("old", [0.7], summary=False, model="lenet", batch_size=64)
    write_run("blind", [], model="vit")
    report = read([tmp_path / "runs" / name for name in ("mlp", "lenet", "stopped", "old", "blind")])
    assert report.settings == {
        "model.name": "name",
        "batch_size": "batch_size",
        "optimizer.learning_rate": "learning_rate",
    }
    assert [group.runs[0].name for group in report.groups] == ["mlp", "lenet", "old", "blind"]
    text = render.to_markdown(report)
    assert "left out: stopped (step 10)" in text and "| vit |" in text
    assert len(render.to_html(report, "all")) > 1000


def test_no_run_has_finished_yet(write_run, tmp_path):
    for rate in (0.1, 0.01):
        write_run(f"{rate}", [0.5], finished=False, optimizer__learning_rate=rate)
    report = read([tmp_path / "runs"])
    assert (report.groups, report.usual, report.best) == ([], {}, None)
    assert "left out: 0.01 (step 10), 0.1 (step 10)" in render.to_markdown(report)


def test_the_page_is_self_contained(swept, entry):
    folder, _ = swept
    (folder / "rate=0.1,seed=0" / "config.json").write_text(
        (folder / "rate=0.1,seed=0" / "config.json").read_text().replace('"source": ""', '"source": "<b>&"')
    )
    code, out, err = entry("report", folder)
    assert code == 0, err
    assert "learning_rate" in out and "bold was best" in out
    page = (folder / "report.html").read_text()
    assert page.startswith("<!DOCTYPE html>") and page.count("<svg") == 1 and "&lt;b&gt;&amp;" in page
    assert not re.search(r"(src|href)=[\"'](?!#)|url\([\"']?(?!#)|@import|<script|<link", page)
    assert (folder / "report.md").exists() and (folder / "report.csv").exists()


def test_what_cannot_be_read_is_left_out_and_named(write_run, tmp_path):
    """A line of NULs, an empty summary, an evaluation that is a list, a config cut short; a trial that failed."""
    good, nul, empty, cut = (write_run(name, [0.5, 0.6], test=0.7, batch_size=2 + i) for i, name in enumerate("abcd"))
    rows = (nul / "metrics.jsonl").read_bytes().split(b"\n")
    (nul / "metrics.jsonl").write_bytes(b"\n".join([rows[0], b"\0" * 40, b"[1]", *rows[1:]]))
    (empty / "summary.json").write_text("")
    (empty / "evaluation_test.json").write_text("[]")
    (cut / "config.json").write_text('{"attnjax"')
    folder, trials = good.parent, {"a": {}, "f": {}, "n": {}}
    (folder / "sweep.json").write_text(json.dumps({"config": "x.py", "overrides": [], "trials": trials}))
    (folder / "logs").mkdir()
    (folder / "logs" / "f.failed").write_text("error: no data\n")
    report = read([folder])
    assert [run.name for run in report.runs] == ["a", "b", "c"]
    assert [run.finished for run in report.runs] == [True, True, False]
    assert report.groups[1].mean("validation accuracy") == 0.6
    notes = render.to_markdown(report)
    for line in (
        "metrics.jsonl' is damaged: 2 of 6 lines cannot be read, the first is line 2",
        "c/summary.json' is damaged: Expecting value",
        "test.json' is damaged: it is not a JSON object",
        "d/config.json' is damaged",
        "Left out: f failed: error: no data.",
        "Left out: n has not begun.",
    ):
        assert line in notes.replace("\\", ""), line
    for path in (good, nul, empty):
        (path / "config.json").write_text("")
    with pytest.raises(UserError, match=r"no run can be read: .*is damaged"):
        read([folder])


def test_only_the_run_s_own_evaluation_counts(write_run):
    folder = write_run("a", [0.5], test=0.7)
    other = {"split": "test", "checkpoint": "best", "accuracy": 0.9, "overrides": {"data.source": "x"}}
    (folder / "evaluation_test,data.source=x.json").write_text(json.dumps(other))
    latest = {"split": "test", "checkpoint": "latest", "accuracy": 0.8}
    (folder / "evaluation_test,latest.json").write_text(json.dumps(latest))
    report = read([folder])
    assert report.runs[0].metrics["test accuracy"] == 0.7 and not any("another checkpoint" in x for x in report.notes)
    (folder / "evaluation_test.json").unlink()
    report = read([folder])
    assert report.runs[0].metrics["test accuracy"] == 0.8
    assert "Tested at another checkpoint than the best: a at latest." in report.notes


def test_steps_of_a_run_set_by_epochs(write_run, tmp_path):
    write_run("epochs", [0.5])
    write_run("steps", [0.6], steps=20)
    report = read([tmp_path / "runs"])
    assert [group.settings["steps"] for group in report.groups] == [30, 20]


def test_settings_are_no_markup(write_run, entry, tmp_path):
    """Not of rich, Markdown, HTML, mathematics, or a spreadsheet's."""
    values = ["[/b]", "<script>x</script>", "$\\frac$", "=cmd()", "a|b_c_", "[/y]"]
    for i, value in enumerate(values):
        write_run(f"{i} [%y] $x$", [0.5], data__source=value)
    code, out, err = entry("report", tmp_path / "runs")
    assert code == 0 and all(value in out for value in values), err
    text = (tmp_path / "runs" / "report.md").read_text()
    assert "<script" not in text and "&lt;script&gt;" in text and "a\\|b_c_" in text
    lines = csv.DictReader((tmp_path / "runs" / "report.csv").read_text().splitlines())
    assert [line["data.source"] for line in lines] == [value if value[0] != "=" else f"'{value}" for value in values]


def test_the_legend_names_the_lines_of_all_panels(write_run, tmp_path):
    write_run("a", [0.5, 0.6], batch_size=2)
    blind = write_run("b", [0.5, 0.6], batch_size=4)
    rows = [line for line in (blind / "metrics.jsonl").read_text().splitlines(True) if "validation" not in line]
    (blind / "metrics.jsonl").write_text("".join(rows))
    figure = figures.learning_curves(curves(read([tmp_path / "runs"])))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["batch_size=2", "batch_size=4"]


def test_the_learning_curve_has_what_is_validated(write_run):
    folder = write_run("a", [0.5], data__augment__mixup=0.2)
    rows = [{"step": 1, "split": "train", "loss": 3.0, "nll": 2.0, "seconds": 1.0}]
    rows += [{"step": 1, "split": "validation", "loss": 1.0, "accuracy": 0.5, "bleu": 7.0, "exact_match": 0.1}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    axes = figures.learning_curve(folder).get_axes()
    assert [axis.get_ylabel() for axis in axes] == ["loss", "accuracy", "bleu", "exact_match"]
    assert [line.get_ydata().tolist() for line in axes[0].get_lines()] == [[2.0], [1.0]]
    assert axes[0].get_legend().get_texts()[0].get_text() == "train, on mixed images"


def test_mistakes_are_one_line(tmp_path, entry):
    with pytest.raises(UserError, match="no run folder in"):
        read([tmp_path])
    for arguments in ([tmp_path], [tmp_path, tmp_path]):
        code, _, err = entry("report", *arguments)
        assert code == 2 and err.count("\n") == 1
