"""Follows a training's metrics and speed one step late, so that the device never waits for the host."""

import math
import time
from typing import Any

import jax
import numpy as np

from attnjax.errors import Diverged, UserError
from attnjax.metrics import sums as sums_lib
from attnjax.metrics.sums import Metrics
from attnjax.runs.log import RunLog


class Monitor:
    """Sums the metrics between two log lines, and stops a training whose loss or gradient is not finite.

    unit: what the loss is a mean over, "images" or "tokens". sums: those that a resumed run had not logged yet. peak:
    the TFLOP/s that a device can reach, None if it is not known.

    Beside the metrics, it logs of each window, evaluations excluded:
      {unit}_per_second: over all devices.
      tflops_per_second: of one device, in matrix products and convolutions.
      mfu: model FLOPs utilization, the share of `peak` that this is (Chowdhery et al. 2022, appendix B).
      data_wait: the share of the time in which the training waited for its data.
      peak_memory_gib: the most memory that a device has used so far, where the device reports it.
    """

    def __init__(self, log: RunLog, unit: str, sums: dict[str, list[float]], peak: float | None = None):
        self._log, self._unit, self._peak = log, unit, peak
        self._work = np.zeros(2)  # operations, and seconds of waiting for data
        # In their own dtypes, so that the means are the same bits as those of an uninterrupted run.
        types: dict[type, Any] = {int: np.int32, float: np.float32}
        restored: Any = {name: tuple(types[type(x)](x) for x in pair) for name, pair in sums.items()}
        self._total: Metrics | None = restored or None
        self._newest: tuple[int, dict, dict] | None = None  # step, batch, metrics
        self._closed: tuple[int, Metrics | None, np.ndarray] | None = None  # step, sums, work
        self._clock: float | None = None

    def add(self, step: int, batch: dict, metrics: dict, *, operations: int = 0, waited: float = 0.0) -> None:
        """Adds a step, which the device may still be computing; `waited` seconds for its batch."""
        self._newest = (step, batch, metrics)
        self._work += operations, waited
        self._total = sums_lib.add(self._total, metrics)

    def close_window(self, step: int) -> None:
        """Ends the window of a log line at `step`; `settle` writes it."""
        self._closed, self._total, self._work = (step, self._total, self._work), None, np.zeros(2)

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
        sums = jax.device_get([metrics[name] for name in ("loss", "gradient_norm", "learning_rate")])
        if not sums[0][1]:
            raise UserError(f"step {step:,}: none of the examples of its batch could be read")
        loss, norm, rate = (total / max(weight, 1e-9) for total, weight in sums)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise Diverged(
                f"step {step:,} diverged: loss {loss:g}, gradient norm {norm:g}, learning rate {rate:g}; its batch is "
                f"kept in {self._log.keep_batch(step, batch)}"
            )

    def _write(self, step, total, work):
        values = sums_lib.means(total)
        now = time.perf_counter()
        if self._clock is not None:
            values |= self._speed(float(total["loss"][1]), *work.tolist(), now - self._clock)
        self._clock = now
        self._log.write(step, "train", values)

    def _speed(self, count, operations, waited, seconds):
        rate = operations / seconds / 1e12
        speed = {f"{self._unit}_per_second": count / seconds, "tflops_per_second": rate}
        if self._peak:
            speed["mfu"] = rate / self._peak
        speed["data_wait"] = min(1.0, waited / seconds)
        if memory := jax.local_devices()[0].memory_stats():
            speed["peak_memory_gib"] = memory["peak_bytes_in_use"] / 2**30
        return speed
