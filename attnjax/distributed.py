"""Several processes, of one host or more, as one computation: `jax.distributed` by flags, or found on a cluster."""

import argparse
import os

import jax

from attnjax.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that `start` reads."""
    group = parser.add_argument_group("several processes (on SLURM and TPU pods they find each other)")
    group.add_argument("--coordinator", metavar="HOST:PORT", help="an address of process 0 that all can reach")
    group.add_argument("--processes", type=int, help="how many there are")
    group.add_argument("--process", type=int, help="the number of this one, from 0")


def start(args: argparse.Namespace) -> None:
    """Joins the other processes, if there are any; UserError if the flags do not fit, or the others are not found."""
    given = (args.coordinator, args.processes, args.process)
    if given == (None, None, None):
        if _on_cluster():
            _initialise()
        return
    if None in given:
        raise UserError("--coordinator, --processes and --process go together: each process needs all three")
    if not 0 <= args.process < args.processes:
        raise UserError(f"--process {args.process} of --processes {args.processes}: it should be from 0 to one less")
    if ":" not in args.coordinator:
        raise UserError(f"--coordinator {args.coordinator}: it should be HOST:PORT")
    _initialise(coordinator_address=args.coordinator, num_processes=args.processes, process_id=args.process)


def _on_cluster() -> bool:
    """Returns whether this is one of several tasks of a SLURM step, or one of several workers of a TPU pod."""
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")  # set by srun, not in a batch script itself
    return tasks != "1" or "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")


def _initialise(**options):
    try:
        jax.distributed.initialize(**options)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"the processes do not find each other: {str(error).splitlines()[0]}") from error
