"""Captions image files with a trained captioning run.

python experiments/caption.py --workdir RUN photo.jpg other.png
python experiments/caption.py --workdir RUN photo.jpg --nbest 3 --attention attention.png
python experiments/caption.py --workdir RUN photo.jpg --source "a dog runs ."    # image-guided translation

Prints `FILE TAB score TAB text` per caption, best first; the score is the log-probability after the length penalty.
--attention plots where the decoder looks for each subword of the first image's best caption.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from attnjax import cli
from attnjax.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

    from attnjax.runs.folder import Run
    from attnjax.tasks.search import Candidate


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="image files")
    cli.add_run_arguments(parser)
    parser.add_argument("--source", help="the sentence to translate, for a run that reads images and sentences")
    cli.add_search_arguments(parser, "captions per image")
    cli.add_attention_arguments(parser, "image")
    return cli.parse_args(parser, overrides_allowed=False)


def open_captioner(args: argparse.Namespace) -> "Run":
    """Returns the run; UserError if it does not read an image, and a sentence if and only if --source is given."""
    from attnjax.runs.folder import open_run

    run = open_run(args.workdir, args.checkpoint, accept_changes=args.accept_changes)
    run.expect("captioning")
    reads = run.task.reads
    if "image" not in reads:
        raise UserError("this run reads no images: it is a text-only baseline")
    if ("source" in reads) != (args.source is not None):
        raise UserError("this run translates: give --source" if "source" in reads else "this run reads no --source")
    return run


def main() -> None:
    args = parse_args()
    import numpy as np

    from attnjax.reports import attention, figures

    run = open_captioner(args)
    if args.attention:
        attention.check_choice(run, args.layer, args.head)
    images = np.stack([run.task.read_image(path) for path in args.images])
    sentences = None if args.source is None else [args.source] * len(images)
    options = cli.search_options(args, run.config)
    found = run.task.describe(run.variables, len(images), lambda index: images[index], sentences, **options)
    figure = plot(run, images[0], found[0][0], args) if args.attention else None
    for path, candidates in zip(args.images, found, strict=True):
        for candidate in candidates:
            print(f"{path}\t{candidate.score:.4f}\t{candidate.text}")
    if figure:
        figures.save(args.attention, figure, log=sys.stderr)  # stdout is for captions only


def plot(run: "Run", image: "np.ndarray", caption: "Candidate", args: argparse.Namespace) -> "Figure":
    """Returns the figure of the attention of each of a caption's subwords to the image."""
    from attnjax.reports import attention, figures

    source = run.task.encode([args.source])[0] if args.source is not None else ()
    maps = attention.image_attention(run, image, caption.subwords, source)
    weights, title = attention.select(maps, args.layer, args.head)
    shown = attention.displayable(run.config, image)
    return figures.words_over_image(weights, shown, caption.subwords, f"{caption.text}\n{title}")


if __name__ == "__main__":
    cli.run(main)
