"""Draws a run's figures into RUN/figures: learning_curve.png and, for a ViT, attention.png.

python experiments/figures.py --workdir runs/digits_vit [--images 8]
"""

import argparse
from pathlib import Path

from attnjax import cli, data
from attnjax.analysis import figures
from attnjax.training.run import open_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True, help="the run folder")
    parser.add_argument("--images", type=int, default=8, help="images of the test split in attention.png")
    args = cli.parse_args(parser)
    run = open_run(args.workdir)
    folder = args.workdir / "figures"
    folder.mkdir(exist_ok=True)

    def save(name, figure):
        figure.savefig(folder / name, dpi=150)
        print(f"wrote {folder / name}")

    save("learning_curve.png", figures.learning_curve(args.workdir))
    if run.config.model.name == "vit":
        batch = next(iter(data.eval_batches(run.config, data.open_split(run.config, run.config.data.test))))
        save("attention.png", figures.attention(run, batch["image"][: args.images], batch["label"][: args.images]))


if __name__ == "__main__":
    cli.run(main)
