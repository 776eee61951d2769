"""Where numbers go: metrics.jsonl, TensorBoard events, train.log and the console."""

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from attnjax.files import write_atomically, writing
from attnjax.formatting import clock

ROWS_FILE = "metrics.jsonl"


def read_rows(workdir: Path) -> list[dict[str, Any]]:
    """Returns the rows of a run's metrics.jsonl, without an incomplete last one."""
    path = workdir / ROWS_FILE
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _drop_later_rows(workdir, step):
    """Removes the rows after `step`, which a resumed run writes again; returns the rest."""
    rows = [row for row in read_rows(workdir) if row["step"] <= step]
    write_atomically(workdir / ROWS_FILE, "".join(json.dumps(row) + "\n" for row in rows))
    return rows


class RunLog:
    """Writes a run's metrics and messages.

    On a terminal a progress bar shows the latest metrics; elsewhere each row is a plain line. train.log gets all lines
    either way. Only the first of several processes writes. WriteError if a file cannot be written.
    """

    def __init__(self, workdir: Path, start: int, steps: int):
        first = jax.process_index() == 0
        self.console = Console(highlight=False, quiet=not first)
        self._progress = None
        self._first: tuple[float, int] | None = None  # time and step of the first line
        self._steps = steps
        self._workdir = workdir
        with writing(workdir):
            rows = _drop_later_rows(workdir, start) if first else []
            self._began = time.perf_counter() - (rows[-1].get("seconds", 0.0) if rows else 0.0)
            self._jsonl = (workdir / ROWS_FILE if first else Path(os.devnull)).open("a", buffering=1)
            self._file = (workdir / "train.log" if first else Path(os.devnull)).open("a", buffering=1)
            self._events = _events(workdir / "tensorboard", start) if first else None
        if first and self.console.is_terminal:
            columns = [
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(bar_width=None),
                TextColumn("{task.description}"),
                TimeRemainingColumn(),
            ]
            self._progress = Progress(*columns, console=self.console)
            self._bar = self._progress.add_task("compiling", total=steps, completed=start)
            self._progress.start()

    def message(self, text: str) -> None:
        """Prints a line, and writes it to train.log."""
        self.console.print(text, markup=False, soft_wrap=True)
        self._log_line(text)

    def table(self, rows: dict[str, str]) -> None:
        """Prints the closing table, and writes its rows to train.log."""
        if self._progress is not None:
            self._progress.stop()
        table = Table(show_header=False)
        for name, value in rows.items():
            table.add_row(name, escape(value))
            self._log_line(f"{name}: {value}")
        self.console.print(table)

    def _log_line(self, text):
        with writing(self._workdir):
            self._file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    def write(self, step: int, split: str, values: dict[str, float]) -> None:
        """Records the metrics of a split ("train", "validation") after `step` steps, with the seconds trained so far.

        In a resumed run, the seconds of its earlier starts are included, up to the checkpoint that it resumed from.
        """
        if self._events is None:
            return
        seconds = round(time.perf_counter() - self._began, 2)
        with writing(self._workdir):
            self._jsonl.write(json.dumps({"step": step, "split": split, **values, "seconds": seconds}) + "\n")
            for name, value in values.items():
                event = Event(wall_time=time.time(), step=step, summary=scalar(f"{split}/{name}", value))
                self._events.write_event(event)
            self._events.flush()
        text = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        line = f"step {step}/{self._steps}  {split:<10}  {text}{self._left(step) if split == 'train' else ''}"
        self._log_line(line)
        if self._progress is None:
            self.console.print(line, markup=False, soft_wrap=True)
        elif split == "train":
            shown = {k: v for k, v in values.items() if k in ("loss", "accuracy", "mfu") or k.endswith("_per_second")}
            short = "  ".join(f"{name.replace('_per_second', '/s')} {v:.4g}" for name, v in shown.items())
            self._progress.update(self._bar, completed=step, description=short)
        else:
            self._progress.print(line, markup=False)

    def _left(self, step):
        """Returns the time left at the pace since the first line of this start, which excludes compiling."""
        now = time.perf_counter()
        self._first = self._first or (now, step)
        began, first = self._first
        return f"  {clock((now - began) / (step - first) * (self._steps - step))} left" if first < step else ""

    def keep_batch(self, step: int, batch: dict) -> Path:
        """Writes this process's part of the batch with which a step diverged, and returns the file."""
        process = f"_process_{jax.process_index()}" if jax.process_count() > 1 else ""
        path = self._workdir / f"nonfinite_step_{step}{process}.npz"
        with writing(self._workdir):
            np.savez_compressed(path, **batch)
        return path

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
        for file in filter(None, (self._jsonl, self._file, self._events)):
            with contextlib.suppress(OSError):  # every line was flushed already, or reported as an error
                file.close()


def _events(folder, start):
    """Returns a writer of TensorBoard events, whose steps after `start` replace those written before.

    This is not tensorboardX's SummaryWriter, which writes in a thread, and waits for it forever when the disk is full.
    """
    folder.mkdir(exist_ok=True)
    writer = EventsWriter(str(folder / "events"))
    writer.write_event(Event(step=start + 1, session_log=SessionLog(status=SessionLog.START)))
    return writer
