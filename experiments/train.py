"""Trains the model of a config; the same command in the same folder resumes from the latest checkpoint.

python experiments/train.py --config configs/digits_vit.py --workdir runs/digits [--config.seed=1 ...]
python experiments/train.py ... --dry_run    # compiles the step and prints what it needs
python experiments/train.py ... --dry_run --target h100:8    # the same for hardware that this machine does not have
"""

import argparse
from pathlib import Path

from attnjax import cli, distributed
from attnjax.errors import UserError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", help="a config file, FILE.py[:argument=value,...]; default: the run folder's own")
    parser.add_argument("--workdir", type=Path, required=True, help="the run folder")
    parser.add_argument("--dry_run", action="store_true", help="compile the step, print what it needs, train nothing")
    parser.add_argument("--target", help="with --dry_run: compile for h100:N, a100:N or a TPU slice like v5e:2x4")
    parser.add_argument("--profile", metavar="FIRST:LAST", help="write a trace of these steps to WORKDIR/profile")
    parser.add_argument(
        "--accept_changes", action="store_true", help="resume although config or data changed since the checkpoint"
    )
    distributed.add_arguments(parser)
    args = cli.parse_args(parser)
    distributed.start(args)
    if not args.process:  # the first of several, or the only one
        print("reading config and data", flush=True)
    from attnjax import config
    from attnjax.runs import dry_run, loop
    from attnjax.runs.description import read_config
    from attnjax.runs.profiling import Profile
    from attnjax.runs.targets import find_target

    if args.config:
        chosen = config.load(args.config, source=dict(args.overrides).get("data.source", ""))
    elif (args.workdir / "config.json").exists():
        chosen = read_config(args.workdir, accept=args.accept_changes)
    else:
        raise UserError(f"--config is needed: '{args.workdir}' has no config.json of a run to resume")
    config.override(chosen, args.overrides)
    if args.dry_run:
        target = find_target(args.target) if args.target else None
        dry_run.report(chosen, args.workdir, target=target)
    elif args.target:
        raise UserError("--target is for --dry_run: nothing can be trained on hardware that is not here")
    else:
        profile = Profile.parse(args.profile, args.workdir) if args.profile else None
        with distributed.ending_together():
            loop.train(chosen, args.workdir, profile=profile, accept_changes=args.accept_changes)


if __name__ == "__main__":
    cli.run(main)
