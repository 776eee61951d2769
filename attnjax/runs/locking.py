"""A lock file: one training at a time per run folder, one runner per sweep folder."""

import contextlib
import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from attnjax.errors import UserError
from attnjax.files import reason, writing

FILE = "lock"


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Creates a run folder and holds its lock; the lock ends with the process, however that ends.

    Raises UserError, naming the owner, if another process holds it.
    """
    with writing(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        file = (workdir / FILE).open("a+")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(f"'{workdir}' is in use by process {file.read().strip() or '(starting)'}") from None
        except OSError as error:  # some network file systems have no locks
            logging.warning("'%s' cannot be locked (%s): do not start anything else in it", workdir, reason(error))
        with writing(workdir):
            file.truncate(0)
            file.write(f"{os.getpid()} on {socket.gethostname()}\n")
            file.flush()
        yield


def is_locked(workdir: Path) -> bool:
    """Returns whether a process holds the lock of a folder. It takes the lock for a moment to find out."""
    try:
        with (workdir / FILE).open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no folder, or a file system without locks
        return False
    return False
