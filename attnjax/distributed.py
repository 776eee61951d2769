"""Multi-process training on one host or more: `jax.distributed`, set up from flags or by a cluster's environment."""

import argparse
import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Iterator

from attnjax.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that `start` reads."""
    group = parser.add_argument_group("several processes (automatic on SLURM and TPU pods)")
    group.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0, reachable from all")
    group.add_argument("--processes", type=int, help="number of processes")
    group.add_argument("--process", type=int, help="index of this process, from 0")


def start(args: argparse.Namespace) -> None:
    """Connects to the other processes, if any; UserError if the flags are inconsistent or the connection fails."""
    given = (args.coordinator, args.processes, args.process)
    if given == (None, None, None):
        if _on_cluster():
            _initialise()
        return
    if None in given:
        raise UserError("--coordinator, --processes and --process go together: every process needs all three")
    if not 0 <= args.process < args.processes:
        raise UserError(f"--process {args.process} of --processes {args.processes}: it must be at least 0 and less")
    if ":" not in args.coordinator:
        raise UserError(f"--coordinator {args.coordinator}: it must be HOST:PORT")
    _initialise(coordinator_address=args.coordinator, num_processes=args.processes, process_id=args.process)


def _on_cluster() -> bool:
    """Whether this is one of several tasks of a SLURM step or workers of a TPU pod."""
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")  # set by srun, absent in the batch script
    return tasks != "1" or "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
    """Ends this process, in one line, when another one is gone: a collective operation in the block fails."""
    import jax

    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        _end(str(error).splitlines()[0])


def _end(reason: object) -> None:
    """Ends this process without waiting for the others, as JAX would at a normal exit."""
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    line = f"error: another process ended or cannot be reached ({reason}); start all of them again to resume\n"
    os.write(2, line.encode())
    os._exit(1)


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _aborted(number):
    """Handles SIGABRT, which no Python handler can: abort() ends the process before Python runs it."""
    _end("see above")


def _initialise(**options):
    import jax  # not before the command line is read

    # JAX aborts where the process that coordinates the others is gone.
    ctypes.CDLL(None).signal(signal.SIGABRT, _aborted)
    try:
        jax.distributed.initialize(**options)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"cannot connect to the other processes: {str(error).splitlines()[0]}") from error
