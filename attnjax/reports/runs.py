"""What a set of runs comes to: metrics grouped by what differs between them, with mean and deviation over seeds."""

import csv
import dataclasses
import functools
import html
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from attnjax import config as config_lib
from attnjax.errors import UserError
from attnjax.reports import figures
from attnjax.reports.saving import svg
from attnjax.runs.folder import evaluation_path, read_summary
from attnjax.runs.log import read_rows
from attnjax.sweeps.trials import clock, short_names

MOST_CURVES = 10  # in a figure
NO_METRICS = ("step",)  # numbers of an evaluation that are none
LOWER_IS_BETTER = ("loss",)


@dataclasses.dataclass(frozen=True)
class RunResult:
    """The numbers of a run folder.

    fields: the whole config, by dotted path. validation: the metrics at the best step by `best_metric`, {} where it was
    never validated. test: those of `evaluate.py` on the test split, {} where that was not run. rows: metrics.jsonl's.
    parameters and seconds are None for runs that did not record them.
    """

    name: str
    fields: dict[str, Any]
    best_metric: str
    finished: bool
    step: int
    validation: dict[str, float]
    test: dict[str, float]
    rows: Sequence[dict[str, Any]]
    parameters: int | None
    seconds: float | None

    @property
    def metrics(self) -> dict[str, float]:
        """Of the validation the metric that chooses; of the test all."""
        chosen = {f"validation {self.best_metric}": self.validation[self.best_metric]} if self.validation else {}
        return chosen | {f"test {name}": value for name, value in self.test.items()}


@dataclasses.dataclass(frozen=True)
class Group:
    """Finished runs that differ in nothing but their seeds; `settings` are the fields that the groups differ in."""

    settings: dict[str, Any]
    runs: Sequence[RunResult]

    def values(self, metric: str) -> list[float]:
        return [run.metrics[metric] for run in self.runs if metric in run.metrics]

    def mean(self, metric: str) -> float | None:
        """Returns the mean over seeds, None without any."""
        values = self.values(metric)
        return float(np.mean(values)) if values else None

    def deviation(self, metric: str) -> float | None:
        """Returns the standard deviation of a sample (n - 1) over seeds, None for fewer than two."""
        values = self.values(metric)
        return float(np.std(values, ddof=1)) if len(values) > 1 else None


@dataclasses.dataclass(frozen=True)
class Report:
    """Runs and their groups. `settings`: dotted field -> short name, of the fields that the runs differ in."""

    runs: Sequence[RunResult]
    groups: Sequence[Group]
    settings: dict[str, str]

    @property
    def metrics(self) -> list[str]:
        return list(dict.fromkeys(name for run in self.runs for name in run.metrics))

    @functools.cached_property
    def usual(self) -> dict[str, Any]:
        """Returns the settings' values that more than half of at least three groups have, as a base's are."""
        found = {}
        for name in self.settings.values():
            values = [group.settings[name] for group in self.groups]
            (most, count), *_ = Counter(map(repr, values)).most_common(1)
            if len(values) > 2 and 2 * count > len(values):
                found[name] = next(value for value in values if repr(value) == most)
        return found

    def label(self, group: Group) -> str:
        """Returns what is unusual in a group's settings."""
        unusual = {name: value for name, value in group.settings.items() if not self.is_usual(name, value)}
        return ", ".join(f"{name}={_setting(value)}" for name, value in unusual.items()) or "base"

    def is_usual(self, name: str, value: Any) -> bool:
        return name in self.usual and repr(self.usual[name]) == repr(value)

    @property
    def best(self) -> Group | None:
        """The group that was best on validation, which never looks at the test; None if runs chose by other metrics."""
        metrics = {run.best_metric for run in self.runs}
        scored = [group for group in self.groups if group.mean(f"validation {next(iter(metrics))}") is not None]
        if len(metrics) > 1 or len(scored) < 2:
            return None
        (metric,) = metrics
        sign = -1 if metric in LOWER_IS_BETTER else 1
        return max(scored, key=lambda group: sign * group.mean(f"validation {metric}"))

    @property
    def notes(self) -> list[str]:
        """What a reader of the tables should know."""
        notes = [
            "Mean ± standard deviation (n - 1) over seeds. Validation: of the best step; test: of what was evaluated."
        ]
        if self.usual:
            usual = ", ".join(f"{name}={_setting(value)}" for name, value in self.usual.items())
            notes.append(f"Where nothing is said: {usual}.")
        if self.best:
            notes.append("The row in bold was best on validation.")
        unfinished = [f"{run.name} (step {run.step:,})" for run in self.runs if not run.finished]
        if unfinished:
            notes.append(f"Not finished, and left out: {', '.join(unfinished)}.")
        return notes


def read(folders: Iterable[Path]) -> Report:
    """Returns the report of all run folders that are `folders` or lie in them; UserError where there are none.

    Runs are in the order of their folders' names, groups in that of their first runs, but a base comes first.
    """
    paths = []
    for folder in map(Path, folders):
        found = sorted({path.parent for path in folder.glob("**/config.json")}, key=_naturally)
        if not found:
            raise UserError(f"no run folder in '{folder}': none holds a config.json")
        paths += [(path, folder) for path in found]
    runs = [_read_run(path, folder) for path, folder in paths]
    settings = short_names(_settings(runs))
    groups = {}
    for run in runs:
        if run.finished:
            groups.setdefault(repr([run.fields.get(key) for key in settings]), []).append(run)
    groups = [
        Group({settings[key]: members[0].fields.get(key) for key in settings}, members) for members in groups.values()
    ]
    report = Report(runs, groups, settings)
    return dataclasses.replace(report, groups=sorted(groups, key=lambda group: report.label(group) != "base"))


def _naturally(path):
    """Sorts numbers in names by their value."""
    parts = re.split(r"(\d+(?:\.\d+)?)", str(path))
    return [(float(part), "") if part[:1].isdigit() else (0.0, part) for part in parts]


def _settings(runs):
    """Returns the fields that runs differ in, but for those that the model's name alone decides."""
    every = {key: None for run in runs for key in run.fields}
    left_out = {"seed", *config_lib.CADENCE_FIELDS}

    def differs(key, runs):
        return len({repr(run.fields.get(key)) for run in runs}) > 1

    by_model = {}
    for run in runs:
        by_model.setdefault(run.fields["model.name"], []).append(run)
    return [
        key
        for key in every
        if key not in left_out
        and (any(differs(key, same) for same in by_model.values()) or (key == "model.name" and len(by_model) > 1))
    ]


def _read_run(path, folder):
    config = config_lib.read(path / "config.json")
    rows, summary = read_rows(path), read_summary(path)
    metric = config.best_metric
    sign = -1 if metric in LOWER_IS_BETTER else 1
    validations = [row for row in rows if row["split"] == "validation" and metric in row]
    best = max(validations, key=lambda row: (sign * row[metric], row["step"])) if validations else {}
    test = evaluation_path(path, config.data.test)
    measured = json.loads(test.read_text()) if test.exists() else {}
    return RunResult(
        name=path.name if path == folder else str(path.relative_to(folder)),
        fields=config_lib.flat(config),
        best_metric=metric,
        finished=summary.get("finished", True),
        step=rows[-1]["step"] if rows else 0,
        validation={name: x for name, x in best.items() if name not in ("step", "split", "seconds")},
        test={name: x for name, x in measured.items() if isinstance(x, float) and name not in NO_METRICS},
        rows=rows,
        parameters=summary.get("parameters"),
        seconds=rows[-1].get("seconds") if rows else None,
    )


# As text


def to_csv(report: Report) -> str:
    """Returns a line a run, of whole numbers: what differs, the seed, all metrics, parameters, seconds."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["run", *report.settings, "seed", "finished", "steps", *report.metrics, "parameters", "seconds"])
    for run in report.runs:
        settings = [run.fields.get(key) for key in report.settings]
        metrics = [run.metrics.get(name) for name in report.metrics]
        writer.writerow(
            [run.name, *settings, run.fields["seed"], run.finished, run.step, *metrics, run.parameters, run.seconds]
        )
    return out.getvalue()


def table(report: Report) -> tuple[list[str], list[list[str]]]:
    """Returns the head and the rows of the table of groups, as text."""
    head = [*report.settings.values(), "seeds", *report.metrics, "parameters", "time"]
    return head, [_row(report, group) for group in report.groups]


def _row(report, group):
    seconds = [run.seconds for run in group.runs if run.seconds is not None]
    counts = sorted({run.parameters for run in group.runs if run.parameters is not None})
    return [
        *("" if report.is_usual(name, value) else _setting(value) for name, value in group.settings.items()),
        str(len(group.runs)),
        *(_mean(group, metric) for metric in report.metrics),
        ", ".join(f"{count:,}" for count in counts) or "-",
        clock(float(np.mean(seconds))) if seconds else "-",
    ]


def _setting(value):
    return "-" if value is None else str(value) or '""'


def _mean(group, metric):
    mean, deviation = group.mean(metric), group.deviation(metric)
    if mean is None:
        return "-"
    digits = 4 if abs(mean) < 10 else 2
    return f"{mean:.{digits}f}" + ("" if deviation is None else f" ± {deviation:.{digits}f}")


def to_markdown(report: Report) -> str:
    """Returns the table of groups and its notes."""
    head, rows = table(report)
    lines = [head, ["---"] * len(head)]
    for group, row in zip(report.groups, rows, strict=True):
        cells = [cell.replace("|", "\\|") for cell in row]
        lines.append([cell and f"**{cell}**" for cell in cells] if group is report.best else cells)
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return text + "\n\n" + "\n".join(f"- {note}" for note in report.notes) + "\n"


_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #ddd }
th { border-bottom: 2px solid #888 } tr.best { font-weight: bold; background: #f0f6ff }
div.wide { overflow-x: auto } svg { max-width: 100%; height: auto }
"""


def to_html(report: Report, title: str) -> str:
    """Returns a page of its own: the tables of groups and of runs, and the learning curves, with nothing to fetch."""
    head, rows = table(report)
    best = [group is report.best for group in report.groups]
    whole = list(csv.reader(io.StringIO(to_csv(report))))
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        _html_table(head, rows, best),
        *(f"<p>{html.escape(note)}</p>" for note in report.notes),
        "<h2>Learning curves</h2>",
        *(f"<p>{html.escape(note)}</p>" for note in curve_notes(report)),
        svg(figures.learning_curves(curves(report))),
        "<h2>Runs</h2>",
        _html_table(whole[0], whole[1:], [False] * len(report.runs)),
    ]
    page = f"<style>{_STYLE}</style><title>{html.escape(title)}</title>"
    return f'<!DOCTYPE html><html lang="en"><meta charset="utf-8">{page}{"".join(parts)}</html>\n'


def _html_table(head, rows, best):
    def line(cells, tag):
        return "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells)

    body = "".join(
        f"<tr{' class=best' if bold else ''}>{line(row, 'td')}</tr>" for row, bold in zip(rows, best, strict=True)
    )
    return f"<div class=wide><table><tr>{line(head, 'th')}</tr>{body}</table></div>"


# Curves


def curves(report: Report) -> dict[str, dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]]:
    """Returns panel -> group's label -> steps, mean and standard deviation over seeds, each (steps).

    The panels are the training loss and the validation metric; only steps that all of a group's runs have count.
    """
    panels = {}
    for group in _shown(report):
        label = report.label(group)
        metric = group.runs[0].best_metric
        for panel, split, name in (("train loss", "train", "loss"), (f"validation {metric}", "validation", metric)):
            found = [
                {row["step"]: row[name] for row in run.rows if row["split"] == split and name in row}
                for run in group.runs
            ]
            steps = sorted(set.intersection(*map(set, found)))
            if steps:
                values = np.array([[run[step] for step in steps] for run in found])
                deviation = values.std(0, ddof=1) if len(values) > 1 else np.zeros(len(steps))
                panels.setdefault(panel, {})[label] = (np.array(steps), values.mean(0), deviation)
    return panels


def _shown(report):
    """Returns the groups whose curves are shown: the best ones by validation, where there are many."""
    metric = f"validation {report.runs[0].best_metric}"
    if len(report.groups) <= MOST_CURVES or any(group.mean(metric) is None for group in report.groups):
        return report.groups[:MOST_CURVES]
    sign = -1 if report.runs[0].best_metric in LOWER_IS_BETTER else 1
    return sorted(report.groups, key=lambda group: -sign * group.mean(metric))[:MOST_CURVES]


def curve_notes(report: Report) -> list[str]:
    notes = ["Lines are means over seeds, bands one standard deviation."]
    if len(report.groups) > MOST_CURVES:
        notes.append(f"{MOST_CURVES} of {len(report.groups)} groups, the best on validation.")
    return notes
