"""Graceful stops: on a signal, a training saves the current step and ends."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils


class Stop:
    """Whether a stop was requested. `exit_code` is the shell's for the signal: 143, or 130 for Ctrl-C."""

    def __init__(self):
        self.signal = None

    def asked(self, step: int) -> bool:
        """Returns whether to stop after this step. All processes get the same answer, and must all ask at each step.

        With several processes it comes from JAX's preemption service, which also receives a platform's own notices.
        """
        if jax.process_count() == 1:
            return self.signal is not None
        if not multihost_utils.reached_preemption_sync_point(step):
            return False
        # Only the process that received Ctrl-C knows.
        self.signal = int(multihost_utils.process_allgather(np.int32(self.signal or 0)).max()) or None
        return True

    @property
    def name(self) -> str:
        return signal.Signals(self.signal or signal.SIGTERM).name

    @property
    def exit_code(self) -> int:
        return 128 + (self.signal or signal.SIGTERM)


@contextlib.contextmanager
def watch_signals(several: bool) -> Iterator[Stop]:
    """Yields a Stop that SIGTERM and SIGINT set; restores the previous handlers at the end.

    With `several` JAX processes, SIGTERM belongs to JAX's preemption service.
    """
    stop = Stop()

    def record(number, frame):
        stop.signal = stop.signal or number

    def pass_on(number, frame):
        stop.signal = number
        os.kill(os.getpid(), signal.SIGTERM)

    handlers = {signal.SIGINT: pass_on} if several else {signal.SIGINT: record, signal.SIGTERM: record}
    if threading.current_thread() is not threading.main_thread():
        handlers = {}  # only the main thread receives signals
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
