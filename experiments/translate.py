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
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from attnjax import cli
from attnjax.errors import UserError

if TYPE_CHECKING:
    from attnjax.runs.folder import Run
    from attnjax.tasks.search import Candidate

CHUNK = 256  # most lines to translate at once


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lines", nargs="*", metavar="LINE", help="lines to translate; default: those of stdin")
    cli.add_run_arguments(parser)
    cli.add_search_arguments(parser, "translations per line")
    parser.add_argument("--scores", action="store_true", help="print scores and log-probabilities")
    cli.add_attention_arguments(parser, "line")
    return cli.parse_args(parser, overrides_allowed=False)


def main() -> None:
    args = parse_args()
    from attnjax.reports import attention
    from attnjax.runs.folder import open_run

    run = open_run(args.workdir, args.checkpoint, accept_changes=args.accept_changes)
    run.expect("translation")
    options = cli.search_options(args, run.config)
    if args.attention:
        attention.check_choice(run, args.layer, args.head)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")

    first = None
    given = [decoded(os.fsencode(line)) for line in args.lines]
    for lines in [given] if given else chunks(sys.stdin.fileno()):
        for text, candidates in zip(lines, translate(run, lines, options), strict=True):
            first = first or (text, candidates[0])
            for candidate in candidates:
                print(shown(candidate, args.scores))
        sys.stdout.flush()
    if args.attention:
        plot(run, first, args)


def decoded(line: bytes) -> str:
    """Returns the text of a line; with a warning, what is not UTF-8 becomes replacement characters."""
    text = line.decode("utf-8", errors="replace").rstrip("\r\n")
    if "\ufffd" in text and b"\xef\xbf\xbd" not in line:
        print(f"warning: not UTF-8, read with replacement characters: {text[:60]}", file=sys.stderr)
    return text


def chunks(descriptor: int) -> Iterator[list[str]]:
    """Yields the lines received so far, from one to CHUNK, so that a slow pipe is answered immediately."""
    rest = b""
    while data := os.read(descriptor, 2**16):
        *lines, rest = (rest + data).split(b"\n")
        for start in range(0, len(lines), CHUNK):
            yield [decoded(line) for line in lines[start : start + CHUNK]]
    if rest:
        yield [decoded(rest)]


def translate(run: "Run", lines: Sequence[str], options: dict[str, int]) -> list[list["Candidate"]]:
    """Returns `n_best` candidates per line; those of a line without subwords, such as an empty one, are empty."""
    from attnjax.tasks.search import Candidate

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


def shown(candidate: "Candidate", scores: bool) -> str:
    """Returns the line to print for a candidate."""
    if not scores:
        return candidate.text
    pairs = zip(candidate.subwords, candidate.log_probs, strict=True)
    tokens = " ".join(f"{subword}:{value:.3f}" for subword, value in pairs)
    return f"{candidate.score:.4f}\t{candidate.text}\t{tokens}"


def plot(run: "Run", first: "tuple[str, Candidate] | None", args: argparse.Namespace) -> None:
    """Plots the attention of the first line's best translation to its source."""
    from attnjax.reports import attention, figures

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
