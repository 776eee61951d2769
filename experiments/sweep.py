"""Trains every trial of a config's `sweep()`; started again, goes on with what has not finished.

python experiments/sweep.py --config configs/X.py --workdir sweeps/X [--jobs 2] [--evaluate] [--config.steps=1000 ...]
python experiments/sweep.py ... --executor slurm --slurm.partition=gpu --slurm.gpus=1 --slurm.time=600

Each trial is a run folder of its own, WORKDIR/NAME, named by what differs. One that fails does not stop the others.
Ctrl-C saves the step of each and ends; on SLURM it leaves the jobs to themselves. report.py makes tables of a sweep.
"""

import argparse
import dataclasses
import sys
from pathlib import Path

from rich.console import Console

from attnjax import cli
from attnjax.errors import UserError
from attnjax.runs.locking import locked
from attnjax.sweeps import local, runner, slurm, trials


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="a config file with a sweep(), FILE.py[:argument=value,...]")
    parser.add_argument("--workdir", type=Path, required=True, help="the sweep's folder")
    parser.add_argument("--jobs", type=int, default=1, help="trials at once; here, they share the CPU cores")
    parser.add_argument("--executor", choices=("local", "slurm"), default="local")
    parser.add_argument("--evaluate", nargs="?", const="best", default="", metavar="CHECKPOINT", help="test each one")
    parser.add_argument("--retry", action="store_true", help="try those again that failed")
    parser.add_argument("--dry_run", action="store_true", help="print each trial's commands; run nothing")
    group = parser.add_argument_group("slurm", "what each job asks for")
    for field in dataclasses.fields(slurm.Options):
        group.add_argument(f"--slurm.{field.name}", type=field.type, default=field.default, metavar="VALUE")
    args = cli.parse_args(parser)
    if args.jobs < 1:
        raise UserError(f"--jobs={args.jobs}: it should be 1 or more")
    options = slurm.Options(**{f.name: getattr(args, f"slurm.{f.name}") for f in dataclasses.fields(slurm.Options)})

    sweep = trials.plan(args.config, args.workdir, args.overrides, args.evaluate, Path(__file__).resolve().parent)
    console = Console(highlight=False)
    if args.dry_run:
        for trial in sweep.trials:
            console.print(trial.name, sweep.progress(trial).state, markup=False, soft_wrap=True)
            for command in sweep.commands(trial):
                console.print(f"    {trials.shown(command)}", markup=False, soft_wrap=True)
        return
    with locked(args.workdir):
        sweep.save()
        todo = runner.to_run(sweep, args.retry)
        if args.executor == "local":
            executor = local.Local(sweep, todo, args.jobs)
        else:
            executor = slurm.Slurm(sweep, todo, options, args.jobs)
        code = runner.run(sweep, executor, console)
    sys.exit(code)


if __name__ == "__main__":
    cli.run(main)
