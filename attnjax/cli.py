"""Shared by all entry points: `--config.a.b=v` overrides, and every error as one line with an exit code.

Nothing here, nor at the top of an entry point, imports JAX: `--help` and a mistyped flag answer at once.
"""

import argparse
import ctypes
import io
import logging
import os
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from attnjax.errors import UserError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

CHECKPOINT_HELP = "best (on validation, else latest), latest, average (of the last keep_checkpoints), or a step"
ISSUES = "https://github.com/attnjax/attnjax/issues"
MAX_MESSAGE = 1000  # characters
MAX_BEAM = 1000  # as of config.decoding.beam_size


def parse_args(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None = None, *, overrides_allowed: bool = True
) -> argparse.Namespace:
    """Parses the command line; each `--config.PATH=VALUE` (or ` VALUE`) becomes (PATH, VALUE) in `args.overrides`.

    UserError if an override has no value, or if there are any and `overrides_allowed` is False.
    """
    arguments = iter(sys.argv[1:] if argv is None else argv)
    rest, overrides = [], []
    for argument in arguments:
        if not argument.startswith("--config."):
            rest.append(argument)
            continue
        path, equals, text = argument.removeprefix("--config.").partition("=")
        value = text if equals else next(arguments, None)
        if value is None:
            raise UserError(f"{argument} needs a value: {argument}=VALUE")
        overrides.append((path, value))
    args = parser.parse_args(rest)
    if overrides and not overrides_allowed:
        raise UserError(f"{Path(parser.prog).stem} takes no --config overrides; see --help")
    args.overrides = overrides
    return args


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds --workdir, --checkpoint and --accept_changes, the arguments of `runs.folder.open_run`."""
    parser.add_argument("--workdir", type=Path, required=True, help="the run folder")
    parser.add_argument("--checkpoint", default="best", help=CHECKPOINT_HELP)
    parser.add_argument(
        "--accept_changes", action="store_true", help="open it although its files were changed since it was trained"
    )


def add_search_arguments(parser: argparse.ArgumentParser, outputs: str) -> None:
    """Adds --beam and --nbest, which `search_options` reads; `outputs` is for the help: what the search finds."""
    parser.add_argument("--beam", type=int, help="beam size, 1 for greedy search; default: the config's")
    parser.add_argument("--nbest", type=int, default=1, help=f"{outputs}, at most the beam size")


def search_options(args: argparse.Namespace, config: "ConfigDict") -> dict[str, int]:
    """Returns decoding options; without --beam the config's beam size, or --nbest if that is larger.

    UserError for a beam that no search has.
    """
    beam = max(config.decoding.beam_size, args.nbest) if args.beam is None else args.beam
    if beam > MAX_BEAM:
        raise UserError(f"--beam={beam}: it should be at most {MAX_BEAM}")
    return {"beam_size": beam, "n_best": args.nbest}


def add_attention_arguments(parser: argparse.ArgumentParser, of: str) -> None:
    """Adds --attention FIGURE, --layer and --head, the arguments of `reports.attention.select`."""
    parser.add_argument("--attention", type=Path, metavar="FIGURE", help=f"plot the attention for the first {of}")
    parser.add_argument("--layer", type=int, default=-1, help="decoder layer to plot, from 0; default: the last")
    parser.add_argument("--head", type=int, help="attention head to plot, from 0; default: the mean over heads")


def keep_freed_memory() -> None:
    """Stops glibc, if present, from returning freed memory to the kernel.

    With its defaults every step on CPU maps its buffers again and spends up to half of its time in page faults.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        # From glibc's malloc.h: M_TRIM_THRESHOLD off, M_MMAP_MAX 0, M_ARENA_MAX 1.
        for option, value in ((-1, -1), (-4, 0), (-8, 1)):
            mallopt(option, value)


def _quieten_orbax():
    """Silences Orbax: it logs every file it writes and the traceback of every error it also raises.

    After a failed save, its pending writes warn that they were never awaited.
    """
    for handler in logging.getLogger().handlers:
        handler.addFilter(_is_not_orbax)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    sys.unraisablehook = _show_unraisable


def _is_not_orbax(record):
    return record.name not in ("absl", "asyncio") or record.levelno >= logging.CRITICAL


def _show_unraisable(raised):
    if str(raised.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(raised)


def run(main: Callable[[], None]) -> None:
    """Runs an entry point, and shows every error as one line.

    The exit code is that of a UserError, mostly 2; 130 after Ctrl-C; 1 for any other error, whose traceback is kept in
    a file.
    """
    keep_freed_memory()
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    _quieten_orbax()
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "attnjax" / "xla"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))  # which JAX reads when it is imported
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # of names that are not UTF-8
    try:
        main()
    except UserError as error:
        _show(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:  # as of `report.py | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python flushes at its end
        sys.exit(128 + signal.SIGPIPE)
    except Exception as error:
        _show(f"{_summary(error)}; the traceback is in {_keep_traceback()}. Please report it with this file: {ISSUES}")
        sys.exit(1)


def _show(message):
    """Prints a message on one line of stderr, without control characters, and not much longer than a screen."""
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(str(message).split()))
    print(f"error: {text if len(text) <= MAX_MESSAGE else text[: MAX_MESSAGE - 3] + '...'}", file=sys.stderr)


def _summary(error):
    """Returns the kind of an unexpected error and the first line of what it says."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text:
        return f"out of memory: a smaller batch or model is needed ({text[:200]})"
    return f"unexpected {type(error).__name__}: {text[:200]}"


def _keep_traceback():
    """Writes the traceback of the current error to a new file, and returns its path."""
    text = f"{sys.argv}\n\n{traceback.format_exc()}"
    try:
        number, path = tempfile.mkstemp(prefix="attnjax-traceback-", suffix=".txt")
        with os.fdopen(number, "wb") as file:
            file.write(text.encode(errors="backslashreplace"))
    except OSError as error:
        return f"no file, as none can be written: {error.strerror}"
    return path
