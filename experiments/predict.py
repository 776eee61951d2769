"""Classifies image files with a trained run: prints the five most likely classes and their probabilities.

python experiments/predict.py --workdir runs/fashion_vit IMAGE...
"""

import argparse
from pathlib import Path

import jax
import numpy as np

from attnjax import cli
from attnjax.runs.folder import open_run

TOP = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    cli.add_run_arguments(parser)
    args = cli.parse_args(parser, overrides_allowed=False)
    run = open_run(args.workdir, args.checkpoint)
    run.expect("classification")
    pixels = np.stack([run.task.read_image(path) for path in args.images])
    logits = jax.jit(run.objective.logits)(*run.variables, pixels)
    for path, probabilities in zip(args.images, np.asarray(jax.nn.softmax(logits)), strict=True):
        print(path)
        for index in np.argsort(-probabilities)[:TOP]:
            print(f"  {probabilities[index]:6.2%}  {run.task.classes[index]}")


if __name__ == "__main__":
    cli.run(main)
