"""Translates lines with a trained translation run: one line in, one line out, in order, without waiting for the rest.

python experiments/translate.py --workdir RUN < source.txt > target.txt
python experiments/translate.py --workdir RUN --nbest 3 --beam 8 --scores "a man is cooking ." "two dogs"
python experiments/translate.py --workdir RUN --attention attention.png --layer 3 --head 0 "a man is cooking ."

An empty line gives an empty line. --nbest N gives N lines per input line, the last ones empty if the search found
fewer; with --scores each is `score TAB translation TAB log-probability of each subword`. Lines longer than the model's
limit are truncated, with a warning on stderr.
"""

import argparse
import io
import math
import os
import queue
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from attnjax import cli
from attnjax.errors import UserError
from attnjax.reports import attention, figures
from attnjax.runs.folder import Run, open_run
from attnjax.tasks.search import Candidate

CHUNK = 256  # most lines to translate at once


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lines", nargs="*", metavar="LINE", help="lines to translate; default: those of stdin")
    cli.add_run_arguments(parser)
    cli.add_search_arguments(parser, "translations per line")
    parser.add_argument("--scores", action="store_true", help="print scores and log-probabilities")
    attention.add_arguments(parser, "line")
    return cli.parse_args(parser, overrides_allowed=False)


def main() -> None:
    args = parse_args()
    run = open_run(args.workdir, args.checkpoint)
    run.expect("translation")
    options = cli.search_options(args, run.config)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")

    first = None
    given = [decoded(os.fsencode(line)) for line in args.lines]
    for lines in [given] if given else chunks(sys.stdin.buffer):
        for text, candidates in zip(lines, translate(run, lines, options), strict=True):
            first = first or (text, candidates[0])
            for candidate in candidates:
                print(shown(candidate, args.scores))
        sys.stdout.flush()
    if args.attention:
        plot(run, first, args)


def decoded(line: bytes) -> str:
    """Returns the text of a line; invalid UTF-8 becomes replacement characters."""
    return line.decode("utf-8", errors="replace").rstrip("\r\n")


def chunks(stream: BinaryIO) -> Iterator[list[str]]:
    """Yields the lines received so far, from one to CHUNK, so that a slow pipe is answered immediately."""
    waiting: queue.Queue[str | None] = queue.Queue(maxsize=4 * CHUNK)

    def read():
        for line in stream:
            waiting.put(decoded(line))
        waiting.put(None)

    threading.Thread(target=read, daemon=True).start()
    ended = False
    while not ended:
        received = [waiting.get()]
        while received[-1] is not None and len(received) < CHUNK and not waiting.empty():
            received.append(waiting.get())
        ended = received[-1] is None
        if lines := [line for line in received if line is not None]:
            yield lines


def translate(run: Run, lines: Sequence[str], options: dict[str, int]) -> list[list[Candidate]]:
    """Returns `n_best` candidates per line; those of a line without subwords, such as an empty one, are empty."""
    task = run.task
    lengths = [len(ids) for ids in task.encode(lines)]
    for line, length in zip(lines, lengths, strict=True):
        if length > task.limit:
            print(f"warning: truncated to {task.limit} of {length} subwords: {line[:60]}...", file=sys.stderr)
    nonempty = [i for i, length in enumerate(lengths) if length > 1]  # all end in eos
    results = [[Candidate("", 0.0, (), ())] for _ in lines]
    found = task.translate(run.variables, [lines[i] for i in nonempty], **options)
    for i, candidates in zip(nonempty, found, strict=True):
        results[i] = candidates
    missing = Candidate("", -math.inf, (), ())
    return [found + [missing] * (options["n_best"] - len(found)) for found in results]


def shown(candidate: Candidate, scores: bool) -> str:
    """Returns the line to print for a candidate."""
    if not scores:
        return candidate.text
    pairs = zip(candidate.subwords, candidate.log_probs, strict=True)
    tokens = " ".join(f"{subword}:{value:.3f}" for subword, value in pairs)
    return f"{candidate.score:.4f}\t{candidate.text}\t{tokens}"


def plot(run: Run, first: tuple[str, Candidate] | None, args: argparse.Namespace) -> None:
    """Plots the attention of the first line's best translation to its source."""
    if first is None or not first[1].subwords:
        raise UserError("no attention to plot: the first line is empty")
    line, best = first
    source, maps = attention.source_attention(run, line, best.subwords)
    weights, title = attention.select(maps, args.layer, args.head)
    figure = figures.alignment(weights, source, best.subwords, title)
    figures.save(args.attention, figure, log=sys.stderr)  # stdout is for translations only


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `translate.py | head` exits silently
    cli.run(main)
