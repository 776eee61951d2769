"""The trials of a sweep: their names, their run folders in the sweep's folder, and how far each has come.

All that is known of a trial is read from its files, so a sweep that was stopped in any way goes on from them.
"""

import dataclasses
import hashlib
import json
import re
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from attnjax import config as config_lib
from attnjax.errors import UserError
from attnjax.files import write_atomically, writing
from attnjax.runs.folder import evaluation_path, read_summary
from attnjax.runs.log import read_rows
from attnjax.sweeps import Overrides

FILE = "sweep.json"
LONGEST_NAME = 120


@dataclasses.dataclass(frozen=True, eq=False)
class Trial:
    """A training of a sweep: the whole config of it, and what of that the sweep says."""

    name: str
    overrides: Overrides
    config: ConfigDict


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a trial has come; `metric` is the newest validation's, None before the first one.

    `seconds_left` is told from the steps so far, None before there are enough.
    """

    state: str  # waiting, stopped (and can go on), finished, failed
    step: int = 0
    steps: int = 0  # in all; 0 before it has begun
    metric: float | None = None
    seconds_left: float | None = None
    error: str = ""


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The trials of a config's `sweep()`, in `folder`/NAME each; `folder`/logs has what they print.

    given: overrides of the command line, for all trials. evaluate: the checkpoint to test each trial by, "" for none.
    experiments: the folder of the entry points.
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
        """Returns the file of what the trial printed, in all of its starts."""
        return self.folder / "logs" / f"{trial.name}.log"

    def _failure(self, trial):
        return self.folder / "logs" / f"{trial.name}.failed"

    def commands(self, trial: Trial) -> list[list[str]]:
        """Returns the commands that are still to be run, one after the other; none for a trial that has finished."""
        workdir = self.workdir(trial)
        train = [sys.executable, str(self.experiments / "train.py"), "--config", self.spec, "--workdir", str(workdir)]
        train += [f"--config.{path}={text}" for path, text in (*self.given, *_texts(trial.overrides))]
        test = [sys.executable, str(self.experiments / "evaluate.py"), "--workdir", str(workdir)]
        test += [f"--checkpoint={self.evaluate}"]
        trained = read_summary(workdir).get("finished", False)
        tested = trained and (not self.evaluate or self._is_tested(trial))
        return [*([] if trained else [train]), *([] if tested or not self.evaluate else [test])]

    def _is_tested(self, trial):
        path = evaluation_path(self.workdir(trial), trial.config.data.test)
        return path.exists() and json.loads(path.read_text())["checkpoint"] == self.evaluate

    def progress(self, trial: Trial) -> Progress:
        """Returns how far a trial has come, by its files."""
        workdir, failure = self.workdir(trial), self._failure(trial)
        rows, summary = read_rows(workdir), read_summary(workdir)
        step, steps = (rows[-1]["step"] if rows else 0), summary.get("steps", 0)
        validations = [row for row in rows if row["split"] == "validation"]
        metric = validations[-1].get(trial.config.best_metric) if validations else None
        if not self.commands(trial):
            return Progress("finished", step, steps, metric)
        if failure.exists():
            return Progress("failed", step, steps, metric, error=failure.read_text().strip())
        left = None
        if len(rows) > 1 and step > rows[0]["step"]:
            left = (steps - step) * (rows[-1]["seconds"] - rows[0]["seconds"]) / (step - rows[0]["step"])
        return Progress("stopped" if summary else "waiting", step, steps, metric, left)

    def fail(self, trial: Trial, error: str) -> None:
        """Records that a trial failed, and by what."""
        write_atomically(self._failure(trial), error + "\n")

    def forgive(self, trial: Trial) -> None:
        """Takes a failure back, so that the trial is tried again."""
        self._failure(trial).unlink(missing_ok=True)

    def save(self) -> None:
        """Makes the folder; UserError if it holds another sweep. Trials may be added to a sweep later, or left out."""
        path = self.folder / FILE
        described = {"config": self.spec, "overrides": [list(pair) for pair in self.given]}
        known = {}
        if path.exists():
            old = json.loads(path.read_text())
            known = old.pop("trials")
            for name, value in described.items():
                if old[name] != value:
                    raise UserError(f"'{self.folder}' holds a sweep of another {name}: {old[name]}, not {value}")
        known |= {trial.name: dict(_texts(trial.overrides)) for trial in self.trials}
        with writing(self.folder):
            (self.folder / "logs").mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps({**described, "trials": known}, indent=2) + "\n")


def plan(spec: str, folder: Path, given: Sequence[tuple[str, str]], evaluate: str, experiments: Path) -> Sweep:
    """Returns the sweep of a config file; UserError, before anything runs, if a trial's fields are not the config's."""
    overrides = config_lib.load_sweep(spec)
    if not overrides:
        raise UserError(f"the sweep of '{spec}' has no trials")
    trials = []
    for name, fields in zip(_names(overrides), overrides, strict=True):
        config = config_lib.load(spec)
        config_lib.override(config, [*given, *_texts(fields)])
        if evaluate and not config.data.test:
            raise UserError(f"nothing to evaluate trial '{name}' on: its config's data.test is empty")
        trials.append(Trial(name, fields, config))
    return Sweep(folder, spec, given, evaluate, trials, experiments)


def _texts(overrides):
    """Returns (path, text) of each field, as on a command line."""
    return [(path, value if isinstance(value, str) else repr(value)) for path, value in overrides.items()]


def short_names(paths: Sequence[str]) -> dict[str, str]:
    """Returns for each of several dotted fields its last part, or as many as tell it from the others."""
    paths = list(dict.fromkeys(paths))
    short = {}
    for path in paths:
        parts = path.split(".")
        ends = [".".join(parts[-n:]) for n in range(1, len(parts) + 1)]
        short[path] = next(
            end for end in ends if sum(other == end or other.endswith(f".{end}") for other in paths) == 1
        )
    return short


def _names(overrides):
    """Returns a folder's name for each trial, of what it overrides."""
    short = short_names([path for fields in overrides for path in fields])
    names = []
    for fields in overrides:
        name = ",".join(f"{short[path]}={_plain(text)}" for path, text in _texts(fields)) or "base"
        if len(name) > LONGEST_NAME:
            digest = hashlib.sha256(repr(fields).encode()).hexdigest()[:8]
            name = f"{name[: LONGEST_NAME - 9]}-{digest}"
        names.append(name)
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError(f"two trials of the sweep have the same name: {twice[0]}")
    return names


def _plain(text):
    return re.sub(r"[^\w.+-]+", "-", text).strip("-") or "none"


def shown(command: Sequence[str]) -> str:
    """Returns a command as one would type it."""
    return shlex.join(["python", *command[1:]])


def clock(seconds: float) -> str:
    """Returns hours:minutes:seconds."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
