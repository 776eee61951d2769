"""Brings the trials of a sweep to their end, and shows how far they are."""

import time
from collections.abc import Sequence
from typing import Protocol

from rich.console import Console
from rich.live import Live
from rich.table import Table

from attnjax.runs.stopping import watch_signals
from attnjax.sweeps.trials import Progress, Sweep, Trial, clock

POLL_SECONDS = 0.5
_INTEREST = ("running", "failed", "queued", "stopped", "waiting", "finished")  # what is shown first


class Executor(Protocol):
    """What runs trials: `local.Local` or `slurm.Slurm`."""

    def poll(self) -> bool:
        """Starts what can be started; returns whether nothing runs any more and nothing is left to start."""

    def state(self, trial: Trial) -> str | None:
        """Returns what the trial is doing, None where its files say it."""

    def stop(self) -> None:
        """Ends the executor's work early; poll() tells when it has ended."""


def run(sweep: Sweep, executor: Executor, console: Console) -> int:
    """Runs to the end, or until SIGINT or SIGTERM; returns the exit code: 0, 1 if trials failed, 130 or 143."""
    with watch_signals(several=False) as stop, _Board(sweep, executor, console) as board:
        asked = False
        while not executor.poll():
            board.show()
            if stop.signal and not asked:
                asked = True
                executor.stop()
            time.sleep(POLL_SECONDS)
        board.show()
    failed = [trial for trial in sweep.trials if sweep.progress(trial).state == "failed"]
    for trial in failed:
        console.print(f"failed: {trial.name}: {sweep.progress(trial).error}", markup=False, soft_wrap=True)
    if failed:
        console.print("the same command with --retry tries them again", markup=False)
    if stop.signal:
        console.print(f"stopped by {stop.name}; the same command goes on", markup=False)
        return stop.exit_code
    return 1 if failed else 0


class _Board:
    """A live table on a terminal; elsewhere a line for each change of a trial's state."""

    def __init__(self, sweep, executor, console):
        self._sweep, self._executor, self._console = sweep, executor, console
        self._live = (
            Live(console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
            if console.is_terminal
            else None
        )
        self._finished = {}  # not read again
        self._said = {}

    def __enter__(self):
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *error):
        if self._live:
            self._live.stop()

    def _progress(self, trial):
        if trial.name in self._finished:
            return self._finished[trial.name]
        progress = self._sweep.progress(trial)
        if progress.state == "finished":
            self._finished[trial.name] = progress
        return progress

    def show(self):
        rows = {}
        for trial in self._sweep.trials:
            progress = self._progress(trial)
            settled = progress.state in ("finished", "failed")
            rows[trial] = (progress.state if settled else self._executor.state(trial) or progress.state), progress
        if self._live:
            self._live.update(_table(rows, self._console.height - 6), refresh=True)
            return
        for trial, (state, progress) in rows.items():
            if self._said.get(trial.name, "waiting") != state:
                self._console.print(f"{state:<9} {trial.name}{_numbers(trial, progress)}", markup=False, soft_wrap=True)
            self._said[trial.name] = state


def _numbers(trial, progress):
    step = f"  step {progress.step:,}/{progress.steps:,}" if progress.step else ""
    metric = "" if progress.metric is None else f"  {trial.config.best_metric} {progress.metric:.4f}"
    return step + metric


def _table(rows: dict[Trial, tuple[str, Progress]], most: int) -> Table:
    """Returns the table of trials; where they are too many for the screen, those that something happens to."""
    count = sum(state == "finished" for state, _ in rows.values())
    table = Table(title=f"{count} of {len(rows)} trials finished")
    if len(rows) > most:
        table.caption = f"and {len(rows) - most} more"
        rows = dict(sorted(rows.items(), key=lambda row: _INTEREST.index(row[1][0]))[:most])
    for column, justify in (("trial", "left"), ("state", "left"), ("step", "right"), ("validation", "right")):
        table.add_column(column, justify=justify)
    table.add_column("time left", justify="right")
    for trial, (state, progress) in rows.items():
        table.add_row(
            trial.name,
            state,
            f"{progress.step:,}/{progress.steps:,}" if progress.steps else "",
            "" if progress.metric is None else f"{trial.config.best_metric} {progress.metric:.4f}",
            clock(progress.seconds_left) if state == "running" and progress.seconds_left is not None else "",
        )
    return table


def to_run(sweep: Sweep, retry: bool) -> Sequence[Trial]:
    """Returns the trials that have not finished; those that failed only if they are to be tried again."""
    states = {trial: sweep.progress(trial).state for trial in sweep.trials}
    if retry:
        for trial in (trial for trial, state in states.items() if state == "failed"):
            sweep.forgive(trial)
    return [trial for trial, state in states.items() if state != "finished" and (retry or state != "failed")]
