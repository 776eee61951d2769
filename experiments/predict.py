"""Classifies image files with a trained run: prints the five most likely classes and their probabilities.

python experiments/predict.py --workdir runs/fashion_vit IMAGE_OR_FOLDER...
"""

import argparse
from pathlib import Path

from attnjax import cli

TOP = 5
AT_ONCE = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="a file, or a folder of them")
    cli.add_run_arguments(parser)
    args = cli.parse_args(parser, overrides_allowed=False)
    import jax
    import numpy as np

    from attnjax.data.images.folders import image_files
    from attnjax.runs.folder import open_run

    run = open_run(args.workdir, args.checkpoint, accept_changes=args.accept_changes)
    run.expect("classification")
    logits = jax.jit(run.objective.logits)
    images = [file for path in args.images for file in image_files(path)]
    for start in range(0, len(images), AT_ONCE):
        paths = images[start : start + AT_ONCE]
        pixels = np.stack([run.task.read_image(path) for path in paths])
        for path, probabilities in zip(paths, np.asarray(jax.nn.softmax(logits(*run.variables, pixels))), strict=True):
            print(path)
            for index in np.argsort(-probabilities)[:TOP]:
                print(f"  {probabilities[index]:6.2%}  {run.task.classes[index]}")


if __name__ == "__main__":
    cli.run(main)
