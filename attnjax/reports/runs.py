"""Reads run folders into groups of runs that differ only in their seeds: their metrics and learning curves."""

import dataclasses
import functools
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from attnjax import config as config_lib
from attnjax.errors import UserError
from attnjax.formatting import short_names
from attnjax.reports.results import RunResult, read_run, score
from attnjax.runs.records import read_record
from attnjax.sweeps.trials import FILE as SWEEP_FILE

MAX_CURVES = 10  # per figure


@dataclasses.dataclass(frozen=True)
class Group:
    """Finished runs that differ only in their seeds. settings: the fields in which the groups differ, by short name."""

    settings: dict[str, Any]
    runs: Sequence[RunResult]

    def values(self, metric: str) -> list[float]:
        return [run.metrics[metric] for run in self.runs if metric in run.metrics]

    def mean(self, metric: str) -> float | None:
        """Returns the mean over seeds, None without values."""
        values = self.values(metric)
        return float(np.mean(values)) if values else None

    def deviation(self, metric: str) -> float | None:
        """Returns the sample standard deviation (n - 1) over seeds, None for fewer than two."""
        values = self.values(metric)
        return float(np.std(values, ddof=1)) if len(values) > 1 else None


@dataclasses.dataclass(frozen=True)
class Report:
    """Runs and their groups. settings: dotted field -> short name, for the fields in which the runs differ.

    left_out: a line on each file, run or trial that is not in the report, or only in part.
    """

    runs: Sequence[RunResult]
    groups: Sequence[Group]
    settings: dict[str, str]
    left_out: Sequence[str] = ()

    @property
    def metrics(self) -> list[str]:
        return list(dict.fromkeys(name for run in self.runs for name in run.metrics))

    @functools.cached_property
    def usual(self) -> dict[str, Any]:
        """Setting -> the value that more than half of at least three groups share, as with ablations of one base."""
        found = {}
        for name in self.settings.values():
            texts = [repr(group.settings[name]) for group in self.groups]
            for group, text in zip(self.groups, texts, strict=True):
                if 2 * texts.count(text) > len(texts) > 2:
                    found[name] = group.settings[name]
        return found

    def is_usual(self, name: str, value: Any) -> bool:
        return name in self.usual and repr(self.usual[name]) == repr(value)

    def label(self, group: Group) -> str:
        """Returns the group's settings that are not the usual ones, or "base"."""
        unusual = {name: value for name, value in group.settings.items() if not self.is_usual(name, value)}
        return joined(unusual) or "base"

    @functools.cached_property
    def ranked(self) -> list[Group]:
        """Validated groups, best first by the validation metric, never the test's; [] if the runs' metrics differ."""
        metric, *others = {run.best_metric for run in self.runs}
        validated = [] if others else [group for group in self.groups if group.values(f"validation {metric}")]
        return sorted(validated, key=lambda group: -score(metric, group.mean(f"validation {metric}") or 0.0))

    @property
    def best(self) -> Group | None:
        """The best of at least two groups on validation."""
        return self.ranked[0] if len(self.ranked) > 1 else None

    @property
    def notes(self) -> list[str]:
        """Sentences to print below the tables."""
        notes = [
            "Mean ± standard deviation (n - 1) over seeds. Validation metrics are those of the best step, test metrics "
            "those of the evaluated checkpoint."
        ]
        if self.usual:
            notes.append(f"Empty cells mean: {joined(self.usual)}.")
        if self.best:
            notes.append("The row in bold was best on validation.")
        unfinished = [f"{run.name} (step {run.step:,})" for run in self.runs if not run.finished]
        if unfinished:
            notes.append(f"Unfinished runs, left out: {', '.join(unfinished)}.")
        if {run.tested for run in self.runs} - {"", "best"}:
            others = [f"{run.name} at {run.tested}" for run in self.runs if run.tested not in ("", "best")]
            notes.append(f"Tested at another checkpoint than the best: {', '.join(others)}.")
        return [*notes, *(f"Left out: {line}." for line in self.left_out)]


def joined(settings: dict[str, Any]) -> str:
    """Returns settings as name=value, separated by commas."""
    return ", ".join(f"{name}={shown(value)}" for name, value in settings.items())


def shown(value: Any) -> str:
    """Returns the text of a setting: "-" for None, quotes for an empty string."""
    return "-" if value is None else str(value) or '""'


def read(folders: Iterable[Path]) -> Report:
    """Returns the report of all run folders found at or below `folders`; UserError if a folder contains none.

    Runs are sorted by folder name, groups by their first run, except that a base comes first. What cannot be read is
    left out, with a note.
    """
    runs: list[RunResult] = []
    left_out: list[str] = []
    for folder in map(Path, folders):
        found = sorted({path.parent for path in folder.glob("**/config.json")}, key=_natural_order)
        if not found:
            raise UserError(f"no run folder in '{folder}': there is no config.json")
        for path in found:
            try:
                runs.append(read_run(path, folder, left_out))
            except UserError as error:
                left_out.append(str(error))
        left_out += _unfinished_trials(folder)
    if not runs:
        raise UserError(f"no run can be read: {left_out[0]}")
    if len({run.fields["steps"] for run in runs}) > 1:
        for run in runs:  # some are set by epochs
            run.fields["steps"] = run.fields["steps"] or run.steps
    settings = short_names(_settings(runs))
    members: dict[str, list[RunResult]] = {}
    for run in runs:
        if run.finished:
            members.setdefault(repr([run.fields.get(key) for key in settings]), []).append(run)
    groups = [Group({settings[key]: own[0].fields.get(key) for key in settings}, own) for own in members.values()]
    report = Report(runs, groups, settings, left_out)
    return Report(runs, sorted(groups, key=lambda group: report.label(group) != "base"), settings, left_out)


def _unfinished_trials(folder):
    """Returns a line on each trial of a sweep that failed or has not begun, if this is a sweep's folder."""
    damage: list[str] = []
    sweep = read_record(folder / SWEEP_FILE, {"trials": dict}, damage)
    for name in sweep.get("trials", {}):
        failure = folder / "logs" / f"{name}.failed"
        if failure.is_file():
            damage.append(f"{name} failed: {failure.read_text(encoding='utf-8', errors='replace').strip()}")
        elif not (folder / name / "config.json").exists():
            damage.append(f"{name} has not begun")
    return damage


def _natural_order(path):
    """Sort key that compares numbers in names by value."""
    parts = re.split(r"(\d+(?:\.\d+)?)", str(path))
    return [(float(part), "") if part[:1].isdigit() else (0.0, part) for part in parts]


def _settings(runs: Sequence[RunResult]) -> list[str]:
    """Returns the fields in which runs differ, without those that depend on the model's name alone."""
    fields = dict.fromkeys(key for run in runs for key in run.fields)
    models = {run.fields["model.name"] for run in runs}
    differing = {"model.name"} if len(models) > 1 else set()
    for model in models:
        same = [run for run in runs if run.fields["model.name"] == model]
        differing |= {key for key in fields if len({repr(run.fields.get(key)) for run in same}) > 1}
    return [key for key in fields if key in differing - {"seed", *config_lib.CADENCE_FIELDS}]


class Curve(NamedTuple):
    """Mean and standard deviation over seeds at each step, all (steps,)."""

    steps: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray


def curves(report: Report) -> dict[str, dict[str, Curve]]:
    """Returns panel -> group's label -> curve, for the training loss and the validation metric.

    A curve has the steps that all runs of the group have. Of many groups the best on validation are shown.
    """
    panels: dict[str, dict[str, Curve]] = {}
    ranked = report.ranked if len(report.ranked) == len(report.groups) > MAX_CURVES else report.groups
    for group in ranked[:MAX_CURVES]:
        metric = group.runs[0].best_metric
        for panel, split, name in (("train loss", "train", "loss"), (f"validation {metric}", "validation", metric)):
            if curve := _curve(group, split, name):
                panels.setdefault(panel, {})[report.label(group)] = curve
    return panels


def _curve(group: Group, split: str, name: str) -> Curve | None:
    runs = [{row["step"]: row[name] for row in run.rows if row["split"] == split and name in row} for run in group.runs]
    steps = sorted(set.intersection(*map(set, runs)))
    if not steps:
        return None
    values = np.array([[run[step] for step in steps] for run in runs])
    deviation = values.std(0, ddof=1) if len(values) > 1 else np.zeros(len(steps))
    return Curve(np.array(steps), values.mean(0), deviation)


def curve_notes(report: Report) -> list[str]:
    """Returns sentences to print above the learning curves."""
    notes = [
        "Lines are means over seeds, bands one standard deviation. The training loss is the one that is minimised: it "
        "is not comparable with a loss on validation where labels are smoothed or images mixed."
    ]
    if len(report.groups) > MAX_CURVES:
        notes.append(f"{MAX_CURVES} of {len(report.groups)} groups, the best on validation.")
    return notes
