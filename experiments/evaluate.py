"""Measures a run on a split: accuracy of a classifier; BLEU and other metrics of generated text, which is written too.

python experiments/evaluate.py --workdir runs/digits [--split test] [--checkpoint best] [--config.data.source=...]

The metrics are written into the run folder: evaluation_SPLIT.json for the best checkpoint and the run's own config,
which is what report.py shows; another checkpoint and each override have files of their own.
"""

import argparse

from attnjax import cli
from attnjax.errors import UserError
from attnjax.files import write_atomically, write_json, writing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_run_arguments(parser)
    parser.add_argument("--split", help="a split of the data; default: the config's data.test")
    args = cli.parse_args(parser)
    from attnjax import config as config_lib
    from attnjax.runs.folder import evaluation_path, open_run
    from attnjax.runs.initialise import with_overrides

    trained = open_run(args.workdir, args.checkpoint, accept_changes=args.accept_changes)
    run = with_overrides(trained, args.workdir, args.overrides)
    overrides = {field: new for field, (_, new) in config_lib.changes(trained.config, run.config).items()}
    split = args.split or run.config.data.test
    if not split:
        raise UserError("the run's config names no test split: give --split")

    report = run.task.test(split, run.variables)
    best = run.config.best_metric
    metrics = {name: report.metrics[name] for name in sorted(report.metrics, key=lambda name: name != best)}
    result = {"split": split, **report.examples, "checkpoint": args.checkpoint, "step": run.step}
    result |= {"overrides": overrides} if overrides else {}
    result |= metrics | {f"{metric}_signature": note for metric, note in report.notes.items()}
    examples = ", ".join(f"{count:,} {unit}" for unit, count in report.examples.items())
    lines = [f"{run.config.data.source} {split}: {examples}, {args.checkpoint} checkpoint, step {run.step:,}"]
    if overrides:
        lines.append("with " + ", ".join(f"{field}={value}" for field, value in overrides.items()))
    for metric, value in metrics.items():
        note = f"  ({report.notes[metric]})" if metric in report.notes else ""
        lines.append(f"{split} {metric} {value:.4f}{note}")

    path = evaluation_path(args.workdir, split, args.checkpoint, overrides)
    try:
        with writing(args.workdir):
            for suffix, text in report.files.items():
                write_atomically(path.with_name(f"{path.stem}.{suffix}"), text)
            write_json(path, result)
    finally:  # also where the folder cannot be written to
        print(*lines, sep="\n")


if __name__ == "__main__":
    cli.run(main)
