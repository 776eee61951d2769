"""Fixtures that run training as separate processes; `make survive` (minutes long, so not part of `make test`)."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent

TALLY = {"kills survived": 0, "stops by SIGTERM and SIGINT survived": 0, "damages detected": 0, "steps lost": 0}


def pytest_terminal_summary(terminalreporter):
    for name, count in TALLY.items() if any(TALLY.values()) else ():
        terminalreporter.write_line(f"{name}: {count}")


@pytest.fixture(scope="session")
def tally():
    """Counts for the summary at the end of the session: name -> count."""
    return TALLY


@pytest.fixture(scope="session")
def launch(tmp_path_factory):
    """Starts training in `count` processes with one device each: launch(workdir, *arguments, count=1) -> the Popens."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_disable_hlo_passes=fusion",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("xla")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }

    def start(workdir, *arguments, count=1):
        command = [sys.executable, str(ROOT / "experiments" / "train.py"), "--workdir", str(workdir), *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        flags = [[]]
        if count > 1:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                address = f"127.0.0.1:{free.getsockname()[1]}"
            flags = [["--coordinator", address, f"--processes={count}", f"--process={i}"] for i in range(count)]
        return [subprocess.Popen([*command, *own], env=environment, cwd=ROOT, **pipes) for own in flags]

    return start
