"""Plots a run into RUN/figures: learning_curve.png; attention.png for a classifier that attends to image patches;
captions.png, test images with what a captioner says of them.

python experiments/figures.py --workdir runs/digits_vit [--images 8]
python experiments/figures.py --windows windows.png    # needs no run: Swin's shifted windows and their masks
python experiments/figures.py --lengths reach.png runs/lstm runs/transformer    # accuracy against sentence length
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from attnjax import cli
from attnjax.errors import UserError

if TYPE_CHECKING:
    from attnjax.runs.folder import Run


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--workdir", type=Path, help="the run folder")
    source.add_argument("--windows", type=Path, metavar="FILE", help="plot Swin's windows to this file")
    source.add_argument(
        "--lengths", type=Path, nargs="+", metavar=("FILE", "RUN"), help="output file, and translation runs to compare"
    )
    parser.add_argument("--images", type=int, default=8, help="number of test images to show")
    args = cli.parse_args(parser, overrides_allowed=False)
    if args.images < 1:
        raise UserError(f"--images={args.images}: it should be 1 or more")
    return args


def main() -> None:
    args = parse_args()
    from attnjax.reports import attention, figures
    from attnjax.reports.windows import windows_figure
    from attnjax.runs.folder import open_run

    if args.windows:
        figures.save(args.windows, windows_figure())
    elif args.lengths:
        compare_lengths(args.lengths[0], args.lengths[1:])
    else:
        run = open_run(args.workdir)
        folder = args.workdir / "figures"
        figures.save(folder / "learning_curve.png", figures.learning_curve(args.workdir))
        if attention.attends_to_patches(run):
            plot_attention(run, folder / "attention.png", args.images)
        elif run.config.task == "captioning" and "image" in run.task.reads:
            plot_captions(run, folder / "captions.png", args.images)


def plot_captions(run: "Run", path: Path, count: int) -> None:
    """Plots the first `count` test images with the best text of each, and the first of its references."""
    import numpy as np

    from attnjax.data.images.pipeline import eval_batch
    from attnjax.reports import attention, figures

    source = run.task.data.open(run.config.data.test)
    index = np.arange(min(count, len(source)))
    images = run.task.image_format.normalise(eval_batch(source.images, index, run.task.image_format)["image"])
    sentences = None if source.sources is None else source.sources[: len(index)]
    found = run.task.describe(run.variables, len(index), lambda i: images[i], sentences)
    texts = [f"{best[0].text} ({source.references[i][0]})" for i, best in enumerate(found)]
    figures.save(path, figures.captions(attention.displayable(run.config, images), texts))


def plot_attention(run: "Run", path: Path, count: int) -> None:
    """Plots the attention over the first `count` test images, labelled with their classes and wrong predictions."""
    import numpy as np

    from attnjax.reports import attention, figures

    batch = run.task.prepare(next(iter(run.task.eval_batches(run.task.data.open(run.config.data.test)))))
    images, labels = batch["image"][:count], batch["label"][:count]
    classes, predicted = run.task.classes, np.asarray(run.objective.logits(*run.variables, images)).argmax(-1)
    names = [
        classes[label] + ("" if guess == label else f" (predicted {classes[guess]})")
        for label, guess in zip(labels, predicted, strict=True)
    ]
    heads, rollout = attention.patch_attention(run, images)
    shown = attention.displayable(run.config, images)
    figures.save(path, figures.patch_attention(heads, rollout, shown, names))


def compare_lengths(path: Path, workdirs: list[Path]) -> None:
    """Plots each run's accuracy on its test split by source length, and writes the numbers beside it as CSV."""
    from attnjax.reports import figures, lengths
    from attnjax.runs.folder import open_run

    names = [workdir.absolute().name for workdir in workdirs]
    if not names or len(set(names)) < len(names):
        raise UserError("--lengths needs a file and run folders with different names, which the legend shows")
    buckets = {name: lengths.measure(open_run(workdir)) for name, workdir in zip(names, workdirs, strict=True)}
    rows = [{"run": name, **bucket._asdict()} for name, found in buckets.items() for bucket in found]
    figures.save(path, figures.accuracy_by_length(buckets), rows)


if __name__ == "__main__":
    cli.run(main)
