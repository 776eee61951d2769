"""Runs the trials of a sweep on this machine, several at once."""

import os
from collections.abc import Sequence

from attnjax.runs.locking import is_locked
from attnjax.sweeps.attempt import Attempt
from attnjax.sweeps.trials import Sweep, Trial


def slots(jobs: int) -> list[tuple[Sequence[int], str | None]]:
    """Returns for each of `jobs` trials at once its CPU cores and its CUDA_VISIBLE_DEVICES (None: as it is).

    Cores are dealt evenly, and shared where there are more jobs; so are the GPUs that CUDA_VISIBLE_DEVICES lists.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    gpus = [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
    return [(_share(cores, i, jobs), ",".join(_share(gpus, i, jobs)) if gpus else None) for i in range(jobs)]


def _share(things, i, parts):
    if len(things) < parts:
        return things[i % len(things) :][:1] if things else []
    return things[i * len(things) // parts : (i + 1) * len(things) // parts]


class Local:
    """`poll` starts trials while there is room for them, and keeps account of those that run."""

    def __init__(self, sweep: Sweep, trials: Sequence[Trial], jobs: int):
        self._sweep, self._waiting = sweep, list(trials)
        self._slots = slots(jobs)
        self._running: dict[int, Attempt] = {}
        self._stopping = False

    def poll(self) -> bool:
        """Returns whether all has ended."""
        self._running = {slot: attempt for slot, attempt in self._running.items() if not attempt.poll()}
        for slot in range(len(self._slots)):
            if slot not in self._running and not self._stopping and (trial := self._next()):
                self._running[slot] = Attempt(self._sweep, trial, *self._slots[slot])
        return not self._running and (self._stopping or not self._waiting)

    def _next(self):
        """Returns a trial to start; not one that still runs on since its sweep was killed."""
        for trial in self._waiting:
            if not is_locked(self._sweep.workdir(trial)):
                self._waiting.remove(trial)
                return trial
        return None

    def state(self, trial: Trial) -> str | None:
        """Returns what cannot be read from the trial's files: whether it is running."""
        return "running" if any(attempt.trial is trial for attempt in self._running.values()) else None

    def stop(self) -> None:
        """Asks all trials to save their step and end, and starts no more; poll() tells when they have."""
        self._stopping = True
        for attempt in self._running.values():
            attempt.stop()
