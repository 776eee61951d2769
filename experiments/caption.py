"""Says what is in images, with a run folder of a captioning config.

python experiments/caption.py --workdir RUN photo.jpg other.png
python experiments/caption.py --workdir RUN photo.jpg --nbest 3 --attention attention.png
python experiments/caption.py --workdir RUN photo.jpg --source "a dog runs ."    # image-guided translation

Prints a line `FILE TAB score TAB text` for each caption, best first; the score is the log-probability that the search
compares by. --attention draws for each subword of the first image's best caption where the decoder looked.
"""

import argparse
import contextlib
import sys
from pathlib import Path

import numpy as np

from attnjax import cli, data
from attnjax.errors import UserError
from attnjax.reports import figures
from attnjax.reports.attention import chosen, image_attention
from attnjax.reports.saving import save_figure
from attnjax.runs.folder import open_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="image files")
    parser.add_argument("--workdir", type=Path, required=True, help="the run folder")
    parser.add_argument("--checkpoint", default="best", help=cli.CHECKPOINT_HELP)
    parser.add_argument("--source", help="the sentence to translate, for a run that reads image and sentence")
    parser.add_argument("--beam", type=int, help="beam size, 1 for greedy search; default: the config's")
    parser.add_argument("--nbest", type=int, default=1, help="captions of each image, at most the beam size")
    parser.add_argument("--attention", type=Path, metavar="FIGURE", help="draw the first image's attention to a file")
    parser.add_argument("--layer", type=int, default=-1, help="of --attention; default: the last decoder layer")
    parser.add_argument("--head", type=int, help="of --attention; default: the mean over heads")
    args = cli.parse_args(parser)
    if args.overrides:
        raise UserError("caption takes no --config overrides; see --help")
    run = open_run(args.workdir, args.checkpoint)
    run.expect("captioning")
    reads = run.workload.reads
    if "image" not in reads:
        raise UserError("this run reads no images: it is a text-only baseline")
    if ("source" in reads) != (args.source is not None):
        raise UserError("this run translates: give --source" if "source" in reads else "this run reads no --source")
    images = np.stack([data.read_image(run.config, path) for path in args.images])
    sentences = None if args.source is None else [args.source] * len(images)
    beam = max(run.config.decoding.beam_size, args.nbest) if args.beam is None else args.beam

    found = run.workload.describe(
        run.variables, len(images), lambda index: images[index], sentences, beam_size=beam, n_best=args.nbest
    )
    if args.attention:
        source = run.workload.encode(sentences[:1])[0] if sentences else ()
        words = found[0][0].subwords
        weights, name = chosen(image_attention(run, images[0], words, source), args.layer, args.head)
        pixels = np.clip(images[0] * np.asarray(run.config.data.std) + np.asarray(run.config.data.mean), 0, 1)
        figure = figures.words_over_image(weights, pixels, words, f"{found[0][0].text}\n{name}")
    for path, candidates in zip(args.images, found, strict=True):
        for candidate in candidates:
            print(f"{path}\t{candidate.score:.4f}\t{candidate.text}")
    if args.attention:
        with contextlib.redirect_stdout(sys.stderr):  # stdout has the captions alone
            save_figure(args.attention, figure)


if __name__ == "__main__":
    cli.run(main)
