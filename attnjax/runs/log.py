"""Where numbers go: metrics.jsonl, TensorBoard events, train.log and the console."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO, cast

import jax
import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from attnjax.files import with_checksum, write_atomically, writing
from attnjax.formatting import clock

ROWS_FILE = "metrics.jsonl"


def _line(row):
    return json.dumps(with_checksum(row, ROWS_FILE)) + "\n"


def _restore_rows(workdir, rows):
    """Writes the rows up to a checkpoint; returns whether the file did not begin with them."""
    path, text = workdir / ROWS_FILE, "".join(map(_line, rows)).encode()
    try:
        found = path.read_bytes()
    except OSError:
        found = b""
    write_atomically(path, text)
    return not found.startswith(text)


class _Output:
    """stdout that may be closed without ending the training, as in `train.py | head`; train.log has all lines."""

    def __getattr__(self, name):
        return getattr(sys.stdout, name)

    def write(self, text):
        try:
            return sys.stdout.write(text)
        except OSError:
            self._discard()
            return len(text)

    def flush(self):
        try:
            sys.stdout.flush()
        except OSError:
            self._discard()

    def _discard(self):
        with open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), sys.stdout.fileno())


class RunLog:
    """Writes a run's metrics and messages.

    On a terminal a progress bar shows the latest metrics; elsewhere each row is a plain line. train.log gets all lines
    either way. Only the first of several processes writes. WriteError if a file cannot be written.

    rows: those that the checkpoint of step `start` recorded, with which metrics.jsonl begins. `restored` says whether
    it had others up to there.
    """

    def __init__(self, workdir: Path, start: int, steps: int, rows: Sequence[dict[str, Any]] = ()):
        first = jax.process_index() == 0
        self.rows = list(rows)
        self.console = Console(highlight=False, quiet=not first, file=cast(TextIO, _Output()))
        self._progress = None
        self._first: tuple[float, int] | None = None  # time and step of the first line
        self._steps = steps
        self._workdir = workdir
        with writing(workdir):
            self.restored = first and _restore_rows(workdir, self.rows)
            self._began = time.perf_counter() - (rows[-1].get("seconds", 0.0) if rows else 0.0)
            self._jsonl = (workdir / ROWS_FILE if first else Path(os.devnull)).open("a", buffering=1)
            log = workdir / "train.log" if first else Path(os.devnull)
            self._file = log.open("a", buffering=1, encoding="utf-8", errors="backslashreplace")
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

    def has(self, split: str, step: int) -> bool:
        """Returns whether the metrics of a split were written after a step."""
        return any(row["step"] == step and row["split"] == split for row in self.rows)

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
        self.rows.append({"step": step, "split": split, **values, "seconds": seconds})
        with writing(self._workdir):
            self._jsonl.write(_line(self.rows[-1]))
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
