"""The trials of a sweep: names, run folders and progress.

A trial's state is read from its files alone, so that a sweep can resume however it was stopped.
"""

import dataclasses
import hashlib
import json
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from attnjax import config as config_lib
from attnjax.errors import UserError
from attnjax.files import write_atomically, writing
from attnjax.formatting import MAX_FILE_NAME, short_names
from attnjax.runs.description import CONFIG_FILE
from attnjax.runs.folder import evaluation_path
from attnjax.runs.records import read_record, read_rows, read_summary
from attnjax.sweeps import Overrides

FILE = "sweep.json"


@dataclasses.dataclass(frozen=True, eq=False)
class Trial:
    """One training run of a sweep: its overrides, and the config with all overrides applied."""

    name: str
    overrides: Overrides
    config: ConfigDict


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a trial is. metric: of the latest validation, None before the first."""

    state: str  # "waiting", "stopped" (resumable), "finished" or "failed"
    step: int = 0
    steps: int = 0  # in total; 0 before the trial has started
    metric: float | None = None
    seconds_left: float | None = None  # extrapolated from the steps so far; None if there are too few
    error: str = ""
    damage: tuple[str, ...] = ()  # lines on files of the trial that cannot be read, and count as missing


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The trials of a config's `sweep()`. Trial NAME has the run folder `folder`/NAME; its output is in `folder`/logs.

    spec: the config, FILE.py[:argument=value,...]. given: command line overrides for all trials.
    evaluate: the checkpoint to evaluate each trial at; "" for no evaluation. experiments: the folder of entry points.
    """

    folder: Path
    spec: str
    given: Sequence[tuple[str, str]]
    evaluate: str
    trials: Sequence[Trial]
    experiments: Path

    def workdir(self, trial: Trial) -> Path:
        return self.folder / trial.name

    def log(self, trial: Trial) -> Path:
        """Returns the file with the trial's output, of all attempts."""
        return self.folder / "logs" / f"{trial.name}.log"

    def _failure(self, trial):
        return self.folder / "logs" / f"{trial.name}.failed"

    def commands(self, trial: Trial) -> list[list[str]]:
        """Returns the commands left to run, in order; none if the trial has finished."""
        workdir = self.workdir(trial)
        train = [sys.executable, str(self.experiments / "train.py"), "--config", self.spec, "--workdir", str(workdir)]
        train += [f"--config.{path}={text}" for path, text in (*self.given, *_texts(trial.overrides))]
        evaluate = str(self.experiments / "evaluate.py")
        test = [sys.executable, evaluate, "--workdir", str(workdir), f"--checkpoint={self.evaluate}"]
        if not read_summary(workdir, []).get("finished", False):
            return [train, test] if self.evaluate else [train]
        return [test] if self.evaluate and not self._evaluation(trial, []) else []

    def _evaluation(self, trial, damage):
        path = evaluation_path(self.workdir(trial), trial.config.data.test, self.evaluate)
        return read_record(path, {"checkpoint": str}, damage)

    def progress(self, trial: Trial) -> Progress:
        """Reads a trial's progress from its files."""
        workdir, failure, damage = self.workdir(trial), self._failure(trial), list[str]()
        rows, summary = read_rows(workdir, damage), read_summary(workdir, damage)
        if self.evaluate:
            self._evaluation(trial, damage)
        step, steps = (rows[-1]["step"] if rows else 0), summary.get("steps", 0)
        validations = [row.get(trial.config.best_metric) for row in rows if row["split"] == "validation"]
        known = Progress("finished", step, steps, validations[-1] if validations else None, damage=tuple(damage))
        if not self.commands(trial):
            return known
        if failure.is_file():
            error = failure.read_text(encoding="utf-8", errors="replace").strip()
            return dataclasses.replace(known, state="failed", error=error)
        timed, left = [row for row in rows if "seconds" in row], None
        if len(timed) > 1 and step > timed[0]["step"]:
            left = (steps - step) * (timed[-1]["seconds"] - timed[0]["seconds"]) / (step - timed[0]["step"])
        return dataclasses.replace(known, state="stopped" if summary else "waiting", seconds_left=left)

    def fail(self, trial: Trial, error: str) -> None:
        """Records that a trial failed."""
        write_atomically(self._failure(trial), error + "\n")

    def clear_failure(self, trial: Trial) -> None:
        """Removes the record of a failure, so that the trial can be tried again."""
        self._failure(trial).unlink(missing_ok=True)

    def save(self) -> list[str]:
        """Creates the folder and writes sweep.json; trials may be added to an existing sweep, or left out.

        Returns a line if a damaged sweep.json was rewritten. UserError if the folder is a run's, or
        holds a sweep with another config or other command line overrides.
        """
        path, damage = self.folder / FILE, list[str]()
        if (self.folder / CONFIG_FILE).exists():
            raise UserError(f"'{self.folder}' is a run's folder: a sweep needs one of its own as --workdir")
        header = {"config": self.spec, "overrides": [list(pair) for pair in self.given]}
        old = read_record(path, {"config": str, "overrides": list, "trials": dict}, damage)
        for name, value in header.items():
            if old.get(name, value) != value:
                raise UserError(f"'{self.folder}' holds a sweep with different {name}: {old[name]}, not {value}")
        trials = old.get("trials", {}) | {trial.name: dict(_texts(trial.overrides)) for trial in self.trials}
        with writing(self.folder):
            (self.folder / "logs").mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps({**header, "trials": trials}, indent=2) + "\n")
        return [f"{line}; it has been rewritten" for line in damage]


def plan(spec: str, folder: Path, given: Sequence[tuple[str, str]], evaluate: str, experiments: Path) -> Sweep:
    """Returns the sweep of a config file; the arguments are those of `Sweep`.

    UserError, before anything runs, if there are no trials, two have the same name, or one does not fit the config.
    """
    overrides = config_lib.load_sweep(spec)
    if not overrides:
        raise UserError(f"the sweep of '{spec}' has no trials")
    trials = []
    for name, fields in zip(_names(overrides), overrides, strict=True):
        config = config_lib.load(spec, source=dict([*given, *_texts(fields)]).get("data.source", ""))
        config_lib.override(config, [*given, *_texts(fields)])
        if evaluate and not config.data.test:
            raise UserError(f"cannot evaluate trial '{name}': its config's data.test is empty")
        trials.append(Trial(name, fields, config))
    return Sweep(folder, spec, given, evaluate, trials, experiments)


def _texts(overrides):
    """Returns (path, text) per field, as on a command line."""
    return [(path, value if isinstance(value, str) else repr(value)) for path, value in overrides.items()]


def _names(overrides):
    """Returns a folder name per trial, made of its overrides."""
    short = short_names(path for fields in overrides for path in fields)
    names = []
    for fields in overrides:
        plain = {short[path]: re.sub(r"[^\w.+-]+", "-", text).strip("-") or "none" for path, text in _texts(fields)}
        name = ",".join(f"{field}={text}" for field, text in plain.items()) or "base"
        if len(name.encode()) > MAX_FILE_NAME:
            digest = hashlib.sha256(repr(fields).encode(errors="surrogatepass")).hexdigest()[:8]
            name = f"{name.encode()[: MAX_FILE_NAME - 9].decode(errors='ignore')}-{digest}"
        names.append(name)
    for name, count in Counter(names).items():
        if count > 1:
            raise UserError(f"two trials of the sweep have the same name: {name}")
    return names
