"""Being asked to stop: a training ends after the step that it is at, with that step saved."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils


class Stop:
    """Whether somebody asked for a stop. `exit_code` is the shell's for the signal: 143, or 130 for Ctrl-C."""

    def __init__(self):
        self.signal = None

    def asked(self, step: int) -> bool:
        """Returns whether to stop after this step; several processes get the same answer, and must all ask each step.

        Several processes learn of it from JAX's preemption service, which also hears of a platform's own notices.
        """
        if jax.process_count() == 1:
            return self.signal is not None
        if not multihost_utils.reached_preemption_sync_point(step):
            return False
        # Only the process that Ctrl-C was for knows of it.
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
    """Yields a Stop that SIGTERM and SIGINT set, as often as they come; the handlers there were are put back.

    With `several` processes of JAX, SIGTERM is its preemption service's.
    """
    stop = Stop()

    def record(number, frame):
        stop.signal = stop.signal or number

    def pass_on(number, frame):
        stop.signal = number
        os.kill(os.getpid(), signal.SIGTERM)

    handlers = {signal.SIGINT: pass_on} if several else {signal.SIGINT: record, signal.SIGTERM: record}
    if threading.current_thread() is not threading.main_thread():
        handlers = {}  # signals come to the main thread alone
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
