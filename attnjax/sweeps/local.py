"""Runs the trials of a sweep on this machine, several at a time."""

import os
from collections.abc import Sequence

from attnjax.runs.locking import is_locked
from attnjax.sweeps.attempt import Attempt
from attnjax.sweeps.trials import Sweep, Trial


def slots(jobs: int) -> list[tuple[Sequence[int], str | None]]:
    """Returns the CPU cores and CUDA_VISIBLE_DEVICES (None: inherited) of each of `jobs` concurrent trials.

    Cores are split evenly, or shared if there are more jobs than cores; likewise the GPUs in CUDA_VISIBLE_DEVICES.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    gpus = [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
    return [(_share(cores, i, jobs), ",".join(_share(gpus, i, jobs)) if gpus else None) for i in range(jobs)]


def _share(items, i, parts):
    if len(items) < parts:
        return items[i % len(items) :][:1] if items else []
    return items[i * len(items) // parts : (i + 1) * len(items) // parts]


class Local:
    """Executor that runs at most `jobs` trials at a time as child processes."""

    def __init__(self, sweep: Sweep, trials: Sequence[Trial], jobs: int):
        self._sweep, self._waiting = sweep, list(trials)
        self._slots = slots(jobs)
        self._running: dict[int, Attempt] = {}
        self._stopping = False

    def poll(self) -> bool:
        """Starts trials in free slots; returns whether all have ended."""
        self._running = {slot: attempt for slot, attempt in self._running.items() if not attempt.poll()}
        for slot in range(len(self._slots)):
            if slot not in self._running and not self._stopping and (trial := self._next()):
                self._running[slot] = Attempt(self._sweep, trial, *self._slots[slot])
        return not self._running and (self._stopping or not self._waiting)

    def _next(self):
        """Returns a trial to start, skipping those that still run because an earlier sweep process was killed."""
        for trial in self._waiting:
            if not is_locked(self._sweep.workdir(trial)):
                self._waiting.remove(trial)
                return trial
        return None

    def state(self, trial: Trial) -> str | None:
        """Returns "running" while the trial runs, else None."""
        return "running" if any(attempt.trial is trial for attempt in self._running.values()) else None

    def stop(self) -> None:
        """Asks all trials to save a checkpoint and exit, and starts no more; poll() returns True once they have."""
        self._stopping = True
        for attempt in self._running.values():
            attempt.stop()
