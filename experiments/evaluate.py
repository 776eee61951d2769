"""Measures a run on a split: accuracy of a classifier; BLEU and more of texts, which go to a file in the run folder.

python experiments/evaluate.py --workdir runs/digits [--split test] [--checkpoint best] [--config.data.source=...]
"""

import argparse
import dataclasses
import json
from pathlib import Path

from attnjax import cli
from attnjax import config as config_lib
from attnjax.files import write_atomically, writing
from attnjax.runs.folder import evaluation_path, open_run
from attnjax.runs.initialise import at_image_size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True, help="the run folder")
    parser.add_argument("--split", help="a split of the data; default: the config's data.test")
    parser.add_argument("--checkpoint", default="best", help=cli.CHECKPOINT_HELP)
    args = cli.parse_args(parser)
    run = open_run(args.workdir, args.checkpoint)
    config = config_lib.resolve(run.config)
    config_lib.override(config, args.overrides)
    if config.data.get("image_size") != run.config.data.get("image_size"):
        run.expect("classification")  # only such a run can be taken to images of another size
        run = at_image_size(run, tuple(config.data.image_size))
    workload = dataclasses.replace(run.workload, config=config)

    split = args.split or config.data.test
    report = workload.test(split, run.variables)
    path = evaluation_path(args.workdir, split, shuffled=config.data.get("shuffle_images", False))
    result = {"split": split, **report.examples, "checkpoint": args.checkpoint, "step": run.step}
    result |= report.metrics | {f"{metric}_signature": note for metric, note in report.notes.items()}
    with writing(args.workdir):
        for ending, text in report.files.items():
            write_atomically(path.with_suffix(f".{ending}"), text)
        write_atomically(path, json.dumps(result, indent=2) + "\n")
    examples = ", ".join(f"{count:,} {unit}" for unit, count in report.examples.items())
    print(f"{config.data.source} {split}: {examples}, {args.checkpoint} checkpoint, step {run.step:,}")
    for metric, value in report.metrics.items():
        note = f"  ({report.notes[metric]})" if metric in report.notes else ""
        print(f"{split} {metric} {value:.4f}{note}")


if __name__ == "__main__":
    cli.run(main)
