"""Follows a training's metrics one step late, so that the device never waits for the host."""

import math
import time
from typing import Any

import jax
import numpy as np

from attnjax.errors import Diverged
from attnjax.metrics import sums as sums_lib
from attnjax.metrics.sums import Metrics
from attnjax.runs.log import RunLog


class Monitor:
    """Sums the metrics between two log lines, and stops a training whose loss or gradient is not finite.

    unit: what the loss is a mean over, "images" or "tokens". sums: those that a resumed run had not logged yet.
    """

    def __init__(self, log: RunLog, unit: str, sums: dict[str, list[float]]):
        self._log, self._unit = log, unit
        # In their own dtypes, so that the means are the same bits as those of an uninterrupted run.
        types: dict[type, Any] = {int: np.int32, float: np.float32}
        restored: Any = {name: tuple(types[type(x)](x) for x in pair) for name, pair in sums.items()}
        self._total: Metrics | None = restored or None
        self._newest: tuple[int, dict, dict] | None = None  # step, batch, metrics
        self._closed: tuple[int, Metrics | None] | None = None  # step, sums
        self._clock: float | None = None

    def add(self, step: int, batch: dict, metrics: dict) -> None:
        """Adds a step, which the device may still be computing."""
        self._newest = (step, batch, metrics)
        self._total = sums_lib.add(self._total, metrics)

    def close_window(self, step: int) -> None:
        """Ends the window of a log line at `step`; `settle` writes it."""
        self._closed, self._total = (step, self._total), None

    def settle(self) -> None:
        """Waits for the newest step, raises Diverged if it has no finite loss or gradient, and writes what is due.

        Called while the device computes the next step, and before the state is evaluated or saved.
        """
        if self._newest is not None:
            newest, self._newest = self._newest, None
            self._check_finite(*newest)
        if self._closed is not None:
            closed, self._closed = self._closed, None
            self._write(*closed)

    def sums(self) -> dict[str, list[Any]]:
        """Returns the sums since the last log line as plain numbers, for a checkpoint."""
        return {name: [x.item() for x in pair] for name, pair in jax.device_get(self._total or {}).items()}

    def restart_clock(self) -> None:
        """Leaves the time of an evaluation out of the speed that is logged next."""
        self._clock = None if self._total else time.perf_counter()

    def _check_finite(self, step, batch, metrics):
        names = ("loss", "gradient_norm", "learning_rate")
        loss, norm, rate = (total / max(weight, 1e-9) for total, weight in jax.device_get([metrics[n] for n in names]))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise Diverged(
                f"step {step:,} diverged: loss {loss:g}, gradient norm {norm:g}, learning rate {rate:g}; its batch is "
                f"kept in {self._log.keep_batch(step, batch)}"
            )

    def _write(self, step, total):
        values = sums_lib.means(total)
        now = time.perf_counter()
        if self._clock is not None:
            values[f"{self._unit}_per_second"] = float(total["loss"][1]) / (now - self._clock)
        self._clock = now
        self._log.write(step, "train", values)
