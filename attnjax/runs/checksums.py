"""Checksums of a checkpoint's files, written before the checkpoint gets its final name and verified before it is read.

A flipped bit in Orbax's array data restores wrong weights silently, and Orbax takes an empty step folder for the latest
checkpoint. So a step whose checksums are missing or differ does not count as a checkpoint.
"""

import hashlib
import json
import os
from pathlib import Path

from attnjax.files import write_atomically

FILE = "checksums.json"

# Orbax writes these when it commits, after the checksums; they hold no weights.
METADATA, COMMITTED = "_CHECKPOINT_METADATA", "commit_success.txt"
_LATER = frozenset([FILE, f".{FILE}.tmp", METADATA, COMMITTED])


def seal(folder: Path, step: int) -> None:
    """Writes `checksums.json`: the step, and the size and SHA-256 of every file. Flushes all of them to the disk."""
    files = {name: {"bytes": size, "sha256": digest} for name, (size, digest) in _read_all(folder).items()}
    write_atomically(folder / FILE, json.dumps({"step": step, "files": files}, indent=1) + "\n")


def is_sealed(folder: Path) -> bool:
    """Returns whether a step folder has checksums, correct or not."""
    return (folder / FILE).is_file()


def read(folder: Path, name: str) -> bytes | None:
    """Returns the contents of one file, None if the checkpoint was saved without it; ValueError if it is damaged."""
    expected = _listed(folder).get(name)
    if expected is None:
        return None
    try:
        data = (folder / name).read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{name} is missing") from None
    except OSError as error:
        raise ValueError(f"{name} cannot be read: {error.strerror}") from None
    if problem := _difference(name, (len(data), hashlib.sha256(data).hexdigest()), expected):
        raise ValueError(problem)
    return data


def damage(folder: Path) -> str | None:
    """Reads all of a step folder, and returns which file is damaged and how; None if it is intact."""
    try:
        listed, found = _listed(folder), _read_all(folder, sync=False)
        metadata = (folder / METADATA).read_bytes()
        (folder / COMMITTED).stat()
    except FileNotFoundError as error:
        return f"{Path(error.filename).relative_to(folder)} is missing"
    except OSError as error:
        return f"{error.filename} cannot be read: {error.strerror}"
    except ValueError as error:
        return str(error)
    if not _is_json(metadata):
        return f"{METADATA} is damaged"
    for name in sorted(listed.keys() | found.keys()):
        if name not in found:
            return f"{name} is missing"
        if name not in listed:
            return f"{name} does not belong to it"
        if problem := _difference(name, found[name], listed[name]):
            return problem
    return None


def _listed(folder):
    """Returns path -> (size, digest) as they were written; ValueError if that is damaged, or is another step's."""
    try:
        sums = json.loads((folder / FILE).read_bytes())
        step, listed = sums["step"], {name: (file["bytes"], file["sha256"]) for name, file in sums["files"].items()}
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ValueError(f"{FILE} is damaged") from None
    except FileNotFoundError:
        raise ValueError(f"it has no {FILE}" if any(folder.iterdir()) else "the folder is empty") from None
    except OSError as error:
        raise ValueError(f"{FILE} cannot be read: {error.strerror}") from None
    if folder.name != str(step):
        raise ValueError(f"it was saved as step {step}")
    return listed


def _is_json(data):
    try:
        return bool(json.loads(data))
    except ValueError:
        return False


def _difference(name, found, listed):
    """Returns how a file's (size, digest) differ from those that were written; None if they do not."""
    if found[0] != listed[0]:
        return f"{name} has {found[0]:,} bytes, {listed[0]:,} were written"
    return None if found[1] == listed[1] else f"{name} is not what was written: its SHA-256 differs"


def _read_all(folder, *, sync=True):
    """Returns path -> (size, digest) of the files in a folder, except those written later."""
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: _read(path, sync) for name, path in paths.items() if name not in _LATER}


def _read(path, sync):
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if sync:
            os.fsync(file.fileno())
        return file.tell(), digest
