"""Graceful stops: on a signal, a training saves the current step and ends."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

Result = TypeVar("Result")

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PATIENCE = 2.0  # seconds after which another Ctrl-C means that the first was not obeyed


class _Interrupted(Exception):
    pass


class Stop:
    """Whether a stop was requested. `exit_code` is the shell's for the signal: 143, or 130 for Ctrl-C."""

    def __init__(self):
        self.signal = None
        self._received = 0.0
        self._saving = False
        self._interrupts = False

    def receive(self, number: int) -> None:
        """Records a signal. A second Ctrl-C ends the process where the first one's checkpoint is not yet being saved:
        a hung file system never lets it. Checkpoints are written so that this damages none."""
        now = time.monotonic()
        if self.signal is None:
            self.signal, self._received = number, now
            if number == signal.SIGINT:
                _say("stopping after this step; another Ctrl-C ends at once, unsaved")
        elif number == signal.SIGINT and now - self._received > _PATIENCE and not self._saving:
            _say("ended at once: what follows the last checkpoint is lost")
            os._exit(128 + number)
        if self._interrupts:
            self._interrupts = False
            raise _Interrupted

    def unless_stopped(self, function: Callable[[], Result]) -> Result | None:
        """Returns the function's result; None if a stop was requested before it ended, which ends it early.

        With several processes it always runs to its end, as they end it together.
        """
        try:
            try:
                self._interrupts = jax.process_count() == 1
                return None if self._interrupts and self.signal else function()
            finally:
                self._interrupts = False
        except _Interrupted:
            return None

    def asked(self, step: int) -> bool:
        """Returns whether to stop after this step. All processes get the same answer, and must all ask at each step.

        With several processes it comes from JAX's preemption service, which also receives a platform's own notices.
        """
        if jax.process_count() == 1:
            self._saving = self.signal is not None
            return self._saving
        if not multihost_utils.reached_preemption_sync_point(step):
            return False
        # Only the process that received Ctrl-C knows.
        self.signal = int(multihost_utils.process_allgather(np.int32(self.signal or 0)).max()) or None
        self._saving = True
        return True

    @property
    def name(self) -> str:
        return signal.Signals(self.signal or signal.SIGTERM).name

    @property
    def exit_code(self) -> int:
        return 128 + (self.signal or signal.SIGTERM)


def _say(line):
    """Writes to stderr from a signal handler, which may have interrupted another write."""
    with contextlib.suppress(OSError):
        os.write(2, f"{line}\n".encode())


@contextlib.contextmanager
def watch_signals(several: bool) -> Iterator[Stop]:
    """Yields a Stop that SIGTERM, SIGINT and SIGHUP set; restores the previous handlers at the end.

    With `several` JAX processes, SIGTERM belongs to JAX's preemption service. `nohup` ignores SIGHUP, and so do we.
    """
    stop = Stop()

    def record(number, frame):
        stop.receive(number)

    def pass_on(number, frame):
        stop.receive(number)
        os.kill(os.getpid(), signal.SIGTERM)

    handlers = {signal.SIGINT: pass_on, signal.SIGHUP: pass_on} if several else dict.fromkeys(_SIGNALS, record)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        del handlers[signal.SIGHUP]
    if threading.current_thread() is not threading.main_thread():
        handlers = {}  # only the main thread receives signals
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
