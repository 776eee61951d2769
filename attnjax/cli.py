"""Shared by all entry points: `--config.a.b=v` overrides, and user errors as one line with exit code 2."""

import argparse
import ctypes
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict

from attnjax.errors import UserError

CHECKPOINT_HELP = "best (on validation, else latest), latest, average (of the last keep_checkpoints), or a step"


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
    """Adds --workdir and --checkpoint, the arguments of `runs.folder.open_run`."""
    parser.add_argument("--workdir", type=Path, required=True, help="the run folder")
    parser.add_argument("--checkpoint", default="best", help=CHECKPOINT_HELP)


def add_search_arguments(parser: argparse.ArgumentParser, outputs: str) -> None:
    """Adds --beam and --nbest, which `search_options` reads; `outputs` is for the help: what the search finds."""
    parser.add_argument("--beam", type=int, help="beam size, 1 for greedy search; default: the config's")
    parser.add_argument("--nbest", type=int, default=1, help=f"{outputs}, at most the beam size")


def search_options(args: argparse.Namespace, config: ConfigDict) -> dict[str, int]:
    """Returns decoding options; without --beam the config's beam size, or --nbest if that is larger."""
    beam = max(config.decoding.beam_size, args.nbest) if args.beam is None else args.beam
    return {"beam_size": beam, "n_best": args.nbest}


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
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    sys.unraisablehook = _show_unraisable


def _show_unraisable(raised):
    if str(raised.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(raised)


def run(main: Callable[[], None]) -> None:
    """Runs an entry point. A UserError is shown as one line, with its exit code (mostly 2); after Ctrl-C it is 130."""
    keep_freed_memory()
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    _quieten_orbax()
    if not jax.config.values["jax_compilation_cache_dir"]:
        cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "attnjax" / "xla"
        jax.config.update("jax_compilation_cache_dir", str(cache))
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
