"""One trial as processes of its own, from where it is to its end."""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from attnjax.sweeps.trials import Sweep, Trial

MOST_KILLS = 3  # of a trial's process, without a step between, until the trial counts as failed
# Saved, or not begun: before and after its training a process ends by the signal itself.
_STOPPED = {sign for number in (signal.SIGTERM, signal.SIGINT) for sign in (128 + number, -number)}
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Attempt:
    """Trains a trial, then tests it. What is killed from outside is started again, and goes on from its checkpoint.

    cores: the CPU cores that it may use, all where empty. gpus: the value of CUDA_VISIBLE_DEVICES, if not the same.
    Should this process die, the trial's is asked to stop, which saves its step.
    """

    def __init__(self, sweep: Sweep, trial: Trial, cores: Sequence[int] = (), gpus: str | None = None):
        self.trial = trial
        self._sweep, self._cores = sweep, cores
        self._env = os.environ | ({} if gpus is None else {"CUDA_VISIBLE_DEVICES": gpus})
        self._kills, self._killed_at = 0, -1
        self._start(sweep.commands(trial)[0])

    def _start(self, command):
        with self._sweep.log(self.trial).open("a") as log:
            self._process = subprocess.Popen(
                command,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the runner, which passes it on
                preexec_fn=self._in_the_child,
            )

    def _in_the_child(self):
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # by which SLURM tells all processes of a job; it is for ours
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            if self._cores:
                os.sched_setaffinity(0, self._cores)

    def poll(self) -> bool:
        """Returns whether it has ended: the trial has finished, failed or was stopped. Starts what comes next."""
        code = self._process.poll()
        if code is None:
            return False
        if code in _STOPPED:
            return True
        commands = self._sweep.commands(self.trial)
        if code == 0:
            if commands and commands[0] == self._process.args:
                return self._fail("it ended without an error, and without an end")
            if commands:
                self._start(commands[0])
            return not commands
        if code in (-signal.SIGKILL, 128 + signal.SIGKILL) and self._may_go_on():
            self._start(commands[0])
            return False
        killed = f"killed by {signal.Signals(-code).name}" if code < 0 else ""
        return self._fail(killed or _last_line(self._sweep.log(self.trial)))

    def _may_go_on(self):
        step = self._sweep.progress(self.trial).step
        self._kills = self._kills + 1 if step == self._killed_at else 1
        self._killed_at = step
        return self._kills <= MOST_KILLS

    def _fail(self, error):
        self._sweep.fail(self.trial, error)
        return True

    def stop(self) -> None:
        """Asks it to save its step and end; poll() tells when it has."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)


def _last_line(path: Path):
    lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it printed nothing"
