"""Names what is in images, with the model of a run folder: the five likeliest classes and their probabilities.

python experiments/predict.py --workdir runs/fashion_vit IMAGE...
"""

import argparse
from pathlib import Path

import jax
import numpy as np

from attnjax import cli, data
from attnjax.runs.folder import open_run

TOP = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    parser.add_argument("--workdir", type=Path, required=True, help="the run folder")
    parser.add_argument("--checkpoint", default="best", help=cli.CHECKPOINT_HELP)
    args = cli.parse_args(parser)
    run = open_run(args.workdir, args.checkpoint)
    run.expect("classification")
    pixels = np.stack([data.read_image(run.config, path) for path in args.images])
    logits = jax.jit(run.task.logits)(run.params, run.model_state, pixels)
    for path, probabilities in zip(args.images, np.asarray(jax.nn.softmax(logits)), strict=True):
        print(path)
        for index in np.argsort(-probabilities)[:TOP]:
            print(f"  {probabilities[index]:6.2%}  {run.workload.classes[index]}")


if __name__ == "__main__":
    cli.run(main)
