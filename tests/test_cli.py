"""What all entry points share: the command line, and errors."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from attnjax import cli
from attnjax.errors import UserError


def fail(error):
    def main():
        raise error

    return main


def test_an_unexpected_error_is_one_line_with_the_file_of_its_traceback(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.run(fail(ZeroDivisionError("by zero\nand more")))
    err = capsys.readouterr().err
    assert stop.value.code == 1 and err.count("\n") == 1
    assert err.startswith("error: unexpected ZeroDivisionError: by zero; the traceback is in /")
    assert f"Please report it with this file: {cli.ISSUES}" in err
    path = Path(re.search(r"(/\S+\.txt)", err)[1])
    assert "raise error" in path.read_text() and "and more" in path.read_text()
    path.unlink()


def test_without_room_for_the_traceback_it_is_one_line_all_the_same(capsys, monkeypatch):
    def full(**_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cli.tempfile, "mkstemp", full)
    with pytest.raises(SystemExit):
        cli.run(fail(MemoryError()))
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "out of memory" in err and "No space left" in err


def test_a_message_is_one_line_of_what_can_be_printed(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.run(fail(UserError("a\nb \x1b[31m \udce9 " + 5000 * "x")))
    err = capsys.readouterr().err
    assert stop.value.code == 2 and err.count("\n") == 1 and len(err) < 1100
    assert err.startswith("error: a b \\x1b[31m \\udce9 xxx")


LOOK = """
import runpy, sys
for path in sys.argv[1:]:
    runpy.run_path(path)
print(*sorted({"jax", "flax", "numpy", "ml_collections", "matplotlib"} & {*sys.modules}))
"""


def test_no_entry_point_loads_jax_before_it_has_read_its_arguments():
    paths = sorted((Path(__file__).parent.parent / "experiments").glob("*.py"))
    found = subprocess.run([sys.executable, "-c", LOOK, *map(str, paths)], capture_output=True, text=True, check=True)
    assert len(paths) == 12 and found.stdout == "\n"


def test_a_closed_pipe_ends_it_without_a_word():
    code = "from attnjax import cli; cli.run(lambda: [print('x' * 99) for _ in range(9999)])"
    running = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    running.stdout.readline()
    running.stdout.close()
    assert (running.stderr.read(), running.wait(30)) == ("", 141)
    running.stderr.close()
