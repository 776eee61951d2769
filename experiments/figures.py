"""Draws a run's figures into RUN/figures: learning_curve.png and, for a ViT, attention.png.

python experiments/figures.py --workdir runs/digits_vit [--images 8]
python experiments/figures.py --windows windows.png    # of no run: how Swin's windows shift, and their masks
python experiments/figures.py --lengths reach.png runs/lstm runs/transformer    # accuracy against sentence length
"""

import argparse
from pathlib import Path

from attnjax import cli, data
from attnjax.errors import UserError
from attnjax.reports import figures, lengths
from attnjax.reports.saving import save_figure
from attnjax.reports.windows import windows_figure
from attnjax.runs.folder import open_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    of = parser.add_mutually_exclusive_group(required=True)
    of.add_argument("--workdir", type=Path, help="the run folder")
    of.add_argument("--windows", type=Path, metavar="FILE", help="the file for the figure of Swin's windows")
    of.add_argument(
        "--lengths", type=Path, nargs="+", metavar=("FILE", "RUN"), help="the file, and runs of translation to compare"
    )
    parser.add_argument("--images", type=int, default=8, help="images of the test split in attention.png")
    args = cli.parse_args(parser)
    if args.windows:
        save_figure(args.windows, windows_figure())
        return
    if args.lengths:
        compare_lengths(args.lengths[0], args.lengths[1:])
        return
    run = open_run(args.workdir)
    folder = args.workdir / "figures"
    save_figure(folder / "learning_curve.png", figures.learning_curve(args.workdir))
    if run.config.model.name == "vit":
        batch = next(iter(data.eval_batches(run.config, data.open_split(run.config, run.config.data.test))))
        images, labels = batch["image"][: args.images], batch["label"][: args.images]
        save_figure(folder / "attention.png", figures.attention(run, images, labels))


def compare_lengths(path: Path, workdirs: list[Path]) -> None:
    """Draws each run's accuracy on its test split by source length, and writes the numbers beside it as CSV."""
    names = [workdir.absolute().name for workdir in workdirs]
    if not names or len(set(names)) < len(names):
        raise UserError("--lengths needs a file and runs in folders of different names, which the legend shows")
    buckets = {name: lengths.measure(open_run(workdir)) for name, workdir in zip(names, workdirs, strict=True)}
    rows = [{"run": name, **bucket._asdict()} for name, found in buckets.items() for bucket in found]
    save_figure(path, figures.accuracy_by_length(buckets), rows)


if __name__ == "__main__":
    cli.run(main)
