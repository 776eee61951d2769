"""Learning curves of groups of runs: means and deviations over seeds, step by step."""

from typing import NamedTuple

import numpy as np

from attnjax.reports.runs import Group, Report

MAX_CURVES = 10  # per figure


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
    for group in _shown(report):
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


def _shown(report):
    groups = report.ranked if len(report.ranked) == len(report.groups) > MAX_CURVES else report.groups
    return groups[:MAX_CURVES]


def curve_notes(report: Report) -> list[str]:
    """Returns sentences to print above the learning curves."""
    notes = ["Lines are means over seeds, bands one standard deviation."]
    if len(report.groups) > MAX_CURVES:
        notes.append(f"{MAX_CURVES} of {len(report.groups)} groups, the best on validation.")
    return notes
