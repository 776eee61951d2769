"""The numbers of one run folder, as its files give them."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attnjax import config as config_lib
from attnjax.runs.description import read_config
from attnjax.runs.records import read_record, read_rows, read_summary

LOWER_IS_BETTER = ("loss",)
CHECKPOINTS = ("best", "average", "latest")  # of those that were tested, the first is shown


def score(metric: str, value: float) -> float:
    """Returns `value` with the sign that makes larger better."""
    return -value if metric in LOWER_IS_BETTER else value


@dataclasses.dataclass(frozen=True)
class RunResult:
    """The numbers of a run folder.

    fields: the complete config, by dotted path. metrics: "validation METRIC", the best value of the metric that selects
    the best checkpoint, and "test METRIC" for all metrics of `evaluate.py` on the test split, as far as they were
    measured, at the checkpoint `tested`. step: the last one logged, of `steps`. rows: those of metrics.jsonl.
    parameters and seconds are None for runs that did not record them.
    """

    name: str
    fields: dict[str, Any]
    best_metric: str
    finished: bool
    step: int
    steps: int
    metrics: dict[str, float]
    tested: str
    rows: Sequence[dict[str, Any]]
    parameters: int | None
    seconds: float | None


def read_run(path: Path, folder: Path, damage: list[str]) -> RunResult:
    """Returns the numbers of a run folder in or at `folder`; adds a line on each file that cannot be read to `damage`.

    UserError if that is its config.
    """
    config = read_config(path)
    rows, metric, known = read_rows(path, damage, complete=True), config.best_metric, len(damage)
    summary = read_summary(path, damage)
    values = [row[metric] for row in rows if row["split"] == "validation" and math.isfinite(row.get(metric, math.nan))]
    metrics = {f"validation {metric}": max(values, key=lambda value: score(metric, value))} if values else {}
    tested = _tested(path, config.data.test, damage)
    return RunResult(
        name=path.name if path == folder else str(path.relative_to(folder)),
        fields=config_lib.flat(config),
        best_metric=metric,
        finished=summary.get("finished", len(damage) == known),  # where it is damaged, nobody knows
        step=rows[-1]["step"] if rows else 0,
        steps=summary.get("steps", 0),
        metrics=metrics | {f"test {name}": value for name, value in tested.items() if isinstance(value, float)},
        tested=tested.get("checkpoint", ""),
        rows=rows,
        parameters=summary.get("parameters"),
        seconds=rows[-1].get("seconds") if rows else None,
    )


def _tested(path, split, damage):
    """Returns what `evaluate.py` wrote of the test split with the run's own config, {} where there is none."""
    files = sorted(path.glob("evaluation_*.json"))
    records = [read_record(file, {"split": str, "checkpoint": str}, damage) for file in files]
    own = [record for record in records if record.get("split") == split and "overrides" not in record]
    order = {name: place for place, name in enumerate(CHECKPOINTS)}
    return min(own, key=lambda record: order.get(record.get("checkpoint"), len(order)), default={})
