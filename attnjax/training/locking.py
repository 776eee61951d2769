"""One training at a time in a run folder."""

import contextlib
import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import jax

from attnjax.errors import UserError
from attnjax.files import reason, writing

FILE = "lock"


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Makes the run folder and holds its lock, which ends with its owner however that ends.

    Of several processes the first one holds it. Raises UserError, which names the owner, if another training has it.
    """
    if jax.process_index():
        yield
        return
    with writing(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        file = (workdir / FILE).open("a+")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(f"'{workdir}' is being trained by process {file.read().strip() or '(starting)'}") from None
        except OSError as error:  # some network file systems have no locks
            logging.warning("'%s' cannot be locked (%s): start no second training in it", workdir, reason(error))
        with writing(workdir):
            file.truncate(0)
            file.write(f"{os.getpid()} on {socket.gethostname()}\n")
            file.flush()
        yield
