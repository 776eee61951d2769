"""Runs one trial as child processes: training, then evaluation."""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from attnjax.sweeps.trials import Sweep, Trial

MAX_KILLS = 3  # consecutive SIGKILLs without a step in between, before the trial counts as failed
# Exit codes of a process that was asked to stop. Outside its training loop it dies of the signal itself.
_STOPPED = {code for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP) for code in (128 + number, -number)}
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Attempt:
    """Trains a trial, then evaluates it. A process killed by SIGKILL is restarted and resumes from its checkpoint.

    cores: CPU cores the trial may use; empty for all. gpus: its CUDA_VISIBLE_DEVICES; None to inherit it.
    If this process dies, the kernel sends SIGTERM to the trial, which saves a checkpoint and exits.
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
                start_new_session=True,  # Ctrl-C reaches only the sweep, which passes it on
                preexec_fn=self._in_child,
            )

    def _in_child(self):
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # SLURM sends it to every process of a job; only ours handles it
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            if self._cores:
                os.sched_setaffinity(0, self._cores)

    def poll(self) -> bool:
        """Returns whether the attempt is over: the trial finished, failed or was stopped. Starts the next command."""
        code = self._process.poll()
        if code is None:
            return False
        if code in _STOPPED:
            return True
        commands = self._sweep.commands(self.trial)
        if code == 0:
            if commands and commands[0] == self._process.args:
                return self._fail("exited without an error but did not finish")
            if commands:
                self._start(commands[0])
            return not commands
        if code in (-signal.SIGKILL, 128 + signal.SIGKILL) and self._may_restart():
            self._start(commands[0])
            return False
        killed = f"killed by {signal.Signals(-code).name}" if code < 0 else ""
        return self._fail(killed or _last_line(self._sweep.log(self.trial)))

    def _may_restart(self):
        step = self._sweep.progress(self.trial).step
        self._kills = self._kills + 1 if step == self._killed_at else 1
        self._killed_at = step
        return self._kills <= MAX_KILLS

    def _fail(self, error):
        self._sweep.fail(self.trial, error)
        return True

    def stop(self) -> None:
        """Asks the process to save a checkpoint and exit; poll() returns True once it has."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)


def _last_line(path: Path):
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        return f"no log: {error.strerror}"
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else "no output"
