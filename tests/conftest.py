"""Eight virtual CPU devices for all tests, and nothing written to the user's home; set before JAX starts."""

import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

_HOME = tempfile.mkdtemp(prefix="attnjax-tests-")
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.join(_HOME, "xla")
os.environ["TFDS_DATA_DIR"] = os.path.join(_HOME, "tensorflow_datasets")

ROOT = Path(__file__).parent.parent


@pytest.fixture
def entry(monkeypatch, capsys):
    """Runs an entry point of experiments/ in this process: entry(name, *arguments) -> (exit code, stdout, stderr)."""
    from attnjax import cli

    def call(name, *arguments):
        spec = importlib.util.spec_from_file_location(name, ROOT / "experiments" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            cli.run(module.main)
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return call


@pytest.fixture(scope="session")
def process():
    """Starts an entry point as a user would, on one device: process(name, *arguments, stdin=None) -> Popen."""
    env = {**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0"}

    def start(name, *arguments, stdin=None):
        command = [sys.executable, str(ROOT / "experiments" / f"{name}.py"), *map(str, arguments)]
        pipes = {"stdin": stdin, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, env=env, text=True, cwd=ROOT, **pipes)

    return start
