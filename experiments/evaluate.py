"""Measures a run on a split: accuracy of a classifier; BLEU and other metrics of generated text, which is written too.

python experiments/evaluate.py --workdir runs/digits [--split test] [--checkpoint best] [--config.data.source=...]
"""

import argparse
import json

from attnjax import cli
from attnjax.files import write_atomically, writing
from attnjax.runs.folder import evaluation_path, open_run
from attnjax.runs.initialise import with_overrides


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_run_arguments(parser)
    parser.add_argument("--split", help="a split of the data; default: the config's data.test")
    args = cli.parse_args(parser)
    run = with_overrides(open_run(args.workdir, args.checkpoint), args.workdir, args.overrides)
    data = run.config.data

    split = args.split or data.test
    report = run.task.test(split, run.variables)
    path = evaluation_path(args.workdir, split, shuffled=data.get("shuffle_images", False))
    result = {"split": split, **report.examples, "checkpoint": args.checkpoint, "step": run.step}
    result |= report.metrics | {f"{metric}_signature": note for metric, note in report.notes.items()}
    with writing(args.workdir):
        for suffix, text in report.files.items():
            write_atomically(path.with_suffix(f".{suffix}"), text)
        write_atomically(path, json.dumps(result, indent=2) + "\n")
    examples = ", ".join(f"{count:,} {unit}" for unit, count in report.examples.items())
    print(f"{data.source} {split}: {examples}, {args.checkpoint} checkpoint, step {run.step:,}")
    for metric, value in report.metrics.items():
        note = f"  ({report.notes[metric]})" if metric in report.notes else ""
        print(f"{split} {metric} {value:.4f}{note}")


if __name__ == "__main__":
    cli.run(main)
