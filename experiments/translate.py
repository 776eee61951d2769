"""Translates lines: one in, one out, in order, as they come; with a run folder of a translation config.

python experiments/translate.py --workdir RUN < source.txt > target.txt
python experiments/translate.py --workdir RUN --nbest 3 --beam 8 --scores "a man is cooking ." "two dogs"
python experiments/translate.py --workdir RUN --attention attention.png --layer 3 --head 0 "a man is cooking ."

An empty line gives an empty line. With --nbest N each line gives N, the last ones empty if the search found fewer; with
--scores each is `score TAB translation TAB log-probability of each subword`. Lines longer than the model's limit are
cut off, and stderr says so.
"""

import argparse
import math
import os
import queue
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from attnjax import cli
from attnjax.errors import UserError
from attnjax.reports import figures
from attnjax.reports.attention import chosen, source_attention
from attnjax.runs.folder import open_run
from attnjax.tasks.search import Candidate

CHUNK = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lines", nargs="*", metavar="LINE", help="what to translate; default: the lines of stdin")
    parser.add_argument("--workdir", type=Path, required=True, help="the run folder")
    parser.add_argument("--checkpoint", default="best", help=cli.CHECKPOINT_HELP)
    parser.add_argument("--beam", type=int, help="beam size, 1 for greedy search; default: the config's")
    parser.add_argument("--nbest", type=int, default=1, help="translations of each line, at most the beam size")
    parser.add_argument("--scores", action="store_true", help="show scores and log-probabilities")
    parser.add_argument("--attention", type=Path, metavar="FIGURE", help="draw the first line's attention to a file")
    parser.add_argument("--layer", type=int, default=-1, help="of --attention; default: the last decoder layer")
    parser.add_argument("--head", type=int, help="of --attention; default: the mean over heads")
    args = cli.parse_args(parser)
    if args.overrides:
        raise UserError("translate takes no --config overrides; see --help")
    run = open_run(args.workdir, args.checkpoint)
    run.expect("translation")
    beam = max(run.config.decoding.beam_size, args.nbest) if args.beam is None else args.beam
    decoding = {"beam_size": beam, "n_best": args.nbest}
    sys.stdout.reconfigure(encoding="utf-8")

    first = None
    given = [decoded(os.fsencode(line)) for line in args.lines]
    for lines in [given] if given else chunks(sys.stdin.buffer):
        for text, candidates in zip(lines, translate(run, lines, decoding), strict=True):
            first = first or (text, candidates)
            for candidate in candidates:
                print(shown(candidate, args.scores))
        sys.stdout.flush()
    if args.attention:
        draw(run, first, args)


def decoded(line):
    """Returns the text of a line of bytes, whatever they are."""
    return line.decode("utf-8", errors="replace").rstrip("\r\n")


def chunks(stream) -> Iterator[list[str]]:
    """Yields what lines have come so far, at least one and at most CHUNK, so that a slow pipe is answered at once."""
    waiting = queue.Queue(maxsize=4 * CHUNK)

    def read():
        for line in stream:
            waiting.put(decoded(line))
        waiting.put(None)

    threading.Thread(target=read, daemon=True).start()
    ended = False
    while not ended:
        lines = [waiting.get()]
        while lines[-1] is not None and len(lines) < CHUNK and not waiting.empty():
            lines.append(waiting.get())
        if ended := lines[-1] is None:
            lines.pop()
        if lines:
            yield lines


def translate(run, lines, decoding):
    """Returns `n_best` candidates of each line; those of a line of no subwords, such as an empty one, are empty."""
    workload = run.workload
    lengths = [len(ids) for ids in workload.encode(lines)]
    for line, length in zip(lines, lengths, strict=True):
        if length > workload.limit:
            print(f"warning: cut off after {workload.limit} of {length} subwords: {line[:60]}...", file=sys.stderr)
    full = [i for i, length in enumerate(lengths) if length > 1]  # all end in eos
    results = [[Candidate("", 0.0, (), ())] for _ in lines]
    for i, found in zip(full, workload.translate(run.variables, [lines[i] for i in full], **decoding), strict=True):
        results[i] = found
    missing = Candidate("", -math.inf, (), ())
    return [found + [missing] * (decoding["n_best"] - len(found)) for found in results]


def shown(candidate, scores):
    """Returns the line that is printed for a candidate."""
    if not scores:
        return candidate.text
    tokens = " ".join(f"{piece}:{value:.3f}" for piece, value in zip(*candidate[2:], strict=True))
    return f"{candidate.score:.4f}\t{candidate.text}\t{tokens}"


def draw(run, first, args):
    """Draws the attention of a line and its best translation."""
    if first is None or not first[1][0].subwords:
        raise UserError("nothing to draw the attention of: the first line is empty")
    line, candidates = first
    source, weights = source_attention(run, line, candidates[0].subwords)
    weights, name = chosen(weights, args.layer, args.head)
    figure = figures.alignment(weights, source, candidates[0].subwords, name)
    try:
        figure.savefig(args.attention, dpi=150)
    except (OSError, ValueError) as error:  # no such folder, no such format
        raise UserError(f"cannot write '{args.attention}': {error}") from error
    print(f"wrote {args.attention}", file=sys.stderr)


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `translate.py | head` ends quietly
    cli.run(main)
