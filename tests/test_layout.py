"""The layout of the package: which folder may import which, and how large its pieces may get."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "attnjax"
# From the ground up: a module imports from its own folder and from those before it.
LOW = ["__init__", "errors", "files", "formatting"]
ROOMS = ["nn", "models", "decoding", "metrics", "objectives", "data", "training", "inspection", "config", "weights"]
ORDER = [*LOW, *ROOMS, "tasks", "runs", "sweeps", "reports", "distributed", "cli"]
FILES = sorted(PACKAGE.glob("**/*.py"))
SCRIPTS = sorted((PACKAGE.parent / "experiments").glob("*.py"))


def folder(parts):
    """Returns the part of the package that a dotted path or a file's path belongs to."""
    return parts[0].removesuffix(".py") if parts else "__init__"


def imported(tree):
    """Yields the dotted paths below `attnjax` that a module imports, anywhere in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "attnjax":
                yield parts[1:] if len(parts) > 1 and (PACKAGE / parts[1]).exists() else parts[1:2]


def known(parts):
    """Returns the part of the package that an import takes; names of attnjax/__init__.py belong to itself."""
    name = folder(parts)
    return name if name in ORDER else "__init__"


def test_every_folder_has_its_place():
    assert {folder(path.relative_to(PACKAGE).parts) for path in FILES} == set(ORDER)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_imports_from_above(path):
    own = folder(path.relative_to(PACKAGE).parts)
    for parts in imported(ast.parse(path.read_text())):
        assert ORDER.index(known(parts)) <= ORDER.index(own), f"{own} imports {'.'.join(parts)}, which is above it"


@pytest.mark.parametrize("path", [*FILES, *SCRIPTS], ids=lambda path: str(path.relative_to(PACKAGE.parent)))
def test_pieces_are_small(path):
    """At most 350 lines per file, 50 per function, and 7 parameters besides `self`."""
    text = path.read_text()
    assert len(text.splitlines()) <= 350
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            arguments = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            assert node.end_lineno - node.lineno < 50, node.name
            assert len([name for name in arguments if name not in ("self", "cls")]) <= 7, node.name
