"""Trains every trial of a config's `sweep()`; run again, it resumes the trials that have not finished.

python experiments/sweep.py --config configs/X.py --workdir sweeps/X [--jobs 2] [--evaluate] [--config.steps=1000 ...]
python experiments/sweep.py ... --executor slurm --slurm.partition=gpu --slurm.gpus=1 --slurm.time=600

Each trial has a run folder of its own, WORKDIR/NAME, named after its overrides. A trial that fails does not stop the
others. Ctrl-C saves a checkpoint of each running trial and exits; on SLURM submitted jobs keep running. report.py makes
tables of a sweep.
"""

import argparse
import dataclasses
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from attnjax import cli
from attnjax.errors import UserError, nearest
from attnjax.sweeps.options import Options

if TYPE_CHECKING:
    from attnjax.sweeps.runner import Executor
    from attnjax.sweeps.trials import Sweep

CHECKPOINTS = ("best", "latest", "average")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="a config file with a sweep(), FILE.py[:argument=value,...]")
    parser.add_argument("--workdir", type=Path, required=True, help="the sweep's folder")
    parser.add_argument("--jobs", type=int, default=1, help="concurrent trials; on this machine they share CPU cores")
    parser.add_argument("--executor", choices=("local", "slurm"), default="local")
    parser.add_argument(
        "--evaluate", nargs="?", const="best", default="", metavar="CHECKPOINT", help="test each trial at a checkpoint"
    )
    parser.add_argument("--retry", action="store_true", help="run failed trials again")
    parser.add_argument("--dry_run", action="store_true", help="print each trial's commands and exit")
    group = parser.add_argument_group("slurm", "resources per job")
    for field in dataclasses.fields(Options):
        group.add_argument(f"--slurm.{field.name}", type=type(field.default), default=field.default, metavar="VALUE")
    args = cli.parse_args(parser)
    if args.jobs < 1:
        raise UserError(f"--jobs={args.jobs}: it should be 1 or more")
    if args.evaluate and args.evaluate not in CHECKPOINTS and not args.evaluate.isdigit():
        raise UserError(f"--evaluate={args.evaluate}: {nearest(args.evaluate, [*CHECKPOINTS, 'a step'])}")
    return args


def make_executor(args: argparse.Namespace, sweep: "Sweep") -> "Executor":
    from attnjax.sweeps import local, runner, slurm

    todo = runner.trials_to_run(sweep, args.retry)
    if args.executor == "local":
        return local.Local(sweep, todo, args.jobs)
    options = {field.name: getattr(args, f"slurm.{field.name}") for field in dataclasses.fields(Options)}
    return slurm.Slurm(sweep, todo, Options(**options), args.jobs)


def main() -> None:
    args = parse_args()
    from rich.console import Console

    from attnjax.runs.locking import locked
    from attnjax.sweeps import runner, trials

    sweep = trials.plan(args.config, args.workdir, args.overrides, args.evaluate, Path(__file__).resolve().parent)
    console = Console(highlight=False)
    if args.dry_run:
        for trial in sweep.trials:
            console.print(trial.name, sweep.progress(trial).state, markup=False, soft_wrap=True)
            for command in sweep.commands(trial):
                console.print("   ", shlex.join(["python", *command[1:]]), markup=False, soft_wrap=True)
        return
    with locked(args.workdir):
        for line in sweep.save():
            console.print(line, markup=False, soft_wrap=True)
        code = runner.run(sweep, make_executor(args, sweep), console)
    sys.exit(code)


if __name__ == "__main__":
    cli.run(main)
