"""Runs a sweep with an executor and shows its progress."""

import contextlib
import time
from collections.abc import Sequence
from typing import Protocol

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from attnjax.formatting import clock
from attnjax.runs.stopping import watch_signals
from attnjax.sweeps.trials import Progress, Sweep, Trial

POLL_SECONDS = 0.5
_PRIORITY = ("running", "failed", "queued", "stopped", "waiting", "finished")  # which rows to keep on a small screen


class Executor(Protocol):
    """Starts and stops trials: `local.Local` or `slurm.Slurm`."""

    def poll(self) -> bool:
        """Starts trials where there is room; returns whether nothing is running and nothing is left to start."""

    def state(self, trial: Trial) -> str | None:
        """Returns "running" or "queued", or None if the trial's files tell its state."""

    def stop(self) -> None:
        """Asks the executor to end early; poll() returns True once it has."""


def trials_to_run(sweep: Sweep, retry: bool) -> Sequence[Trial]:
    """Returns the unfinished trials; with `retry` those that failed too, whose failure is cleared."""
    states = {trial: sweep.progress(trial).state for trial in sweep.trials}
    for trial, state in states.items():
        if retry and state == "failed":
            sweep.clear_failure(trial)
    return [trial for trial, state in states.items() if state != "finished" and (retry or state != "failed")]


def run(sweep: Sweep, executor: Executor, console: Console) -> int:
    """Runs until all trials have ended, or SIGINT or SIGTERM.

    Returns the exit code: 0, 1 if trials failed, or 130 or 143 after a signal.
    """
    board = _Board(sweep, executor, console)
    with watch_signals(several=False) as stop, board.live or contextlib.nullcontext():
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
        console.print("run the same command with --retry to try them again", markup=False)
    if stop.signal:
        console.print(f"stopped by {stop.name}; run the same command again to resume", markup=False)
        return stop.exit_code
    return 1 if failed else 0


class _Board:
    """A live table on a terminal; otherwise one line per change of a trial's state."""

    def __init__(self, sweep: Sweep, executor: Executor, console: Console):
        self._sweep, self._executor, self._console = sweep, executor, console
        self.live: Live | None = None
        if console.is_terminal:
            self.live = Live(console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
        self._finished: dict[str, Progress] = {}  # a cache: their files no longer change
        self._printed: dict[str, str] = {}  # trial -> the state last printed
        self._damage: set[str] = set()  # lines printed

    def show(self):
        rows = {}
        for trial in self._sweep.trials:
            progress = self._finished.get(trial.name) or self._sweep.progress(trial)
            if progress.state == "finished":
                self._finished[trial.name] = progress
            for line in sorted({*progress.damage} - self._damage):
                self._damage.add(line)
                self._console.print(f"{trial.name}: {line}", markup=False, soft_wrap=True)
            ended = progress.state in ("finished", "failed")
            rows[trial] = (progress.state if ended else self._executor.state(trial) or progress.state), progress
        if self.live:
            self.live.update(_table(rows, self._console.height - 6), refresh=True)
            return
        for trial, (state, progress) in rows.items():
            if self._printed.get(trial.name, "waiting") != state:
                step = f"step {progress.step:,}/{progress.steps:,}" if progress.step else ""
                line = "  ".join(filter(None, (f"{state:<9} {trial.name}", step, _metric(trial, progress))))
                self._console.print(line, markup=False, soft_wrap=True)
            self._printed[trial.name] = state


def _metric(trial, progress):
    return "" if progress.metric is None else f"{trial.config.best_metric} {progress.metric:.4f}"


def _table(rows: dict[Trial, tuple[str, Progress]], max_rows: int) -> Table:
    """Returns the table of trials; those of least _PRIORITY are left out if there are more than `max_rows`."""
    count = sum(state == "finished" for state, _ in rows.values())
    table = Table(title=f"{count} of {len(rows)} trials finished")
    if len(rows) > max_rows:
        table.caption = f"and {len(rows) - max_rows} more"
        rows = dict(sorted(rows.items(), key=lambda row: _PRIORITY.index(row[1][0]))[:max_rows])
    for column in ("trial", "state", "step", "validation", "time left"):
        table.add_column(column, justify="left" if column in ("trial", "state") else "right")
    for trial, (state, progress) in rows.items():
        table.add_row(
            escape(trial.name),
            state,
            f"{progress.step:,}/{progress.steps:,}" if progress.steps else "",
            _metric(trial, progress),
            clock(progress.seconds_left) if state == "running" and progress.seconds_left is not None else "",
        )
    return table
