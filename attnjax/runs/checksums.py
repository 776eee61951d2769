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


def seal(folder: Path) -> None:
    """Writes `checksums.json`, the size and SHA-256 of every file, and flushes all of them to the disk."""
    sums = {name: {"bytes": size, "sha256": digest} for name, (size, digest) in _read_all(folder).items()}
    write_atomically(folder / FILE, json.dumps(sums, indent=1) + "\n")


def is_sealed(folder: Path) -> bool:
    """Returns whether a step folder has checksums, correct or not."""
    return (folder / FILE).is_file()


def damage(folder: Path) -> str | None:
    """Reads all of a step folder, and returns which file is damaged and how; None if it is intact."""
    if not any(folder.iterdir()):
        return "the folder is empty"
    if not is_sealed(folder):
        return f"it has no {FILE}"
    try:
        sums = json.loads((folder / FILE).read_bytes())
        listed = {name: (entry["bytes"], entry["sha256"]) for name, entry in sums.items()}
    except (ValueError, TypeError, KeyError, AttributeError):
        return f"{FILE} is damaged"
    except OSError as error:
        return f"{FILE} cannot be read: {error.strerror}"
    try:
        found = _read_all(folder, sync=False)
        json.loads((folder / METADATA).read_bytes())
        (folder / COMMITTED).stat()
    except FileNotFoundError as error:
        return f"{Path(error.filename).relative_to(folder)} is missing"
    except OSError as error:
        return f"{error.filename} cannot be read: {error.strerror}"
    except ValueError:
        return f"{METADATA} is damaged"
    for name in sorted(listed.keys() | found.keys()):
        if name not in found:
            return f"{name} is missing"
        if name not in listed:
            return f"{name} does not belong to it"
        if found[name][0] != listed[name][0]:
            return f"{name} has {found[name][0]:,} bytes, {listed[name][0]:,} were written"
        if found[name][1] != listed[name][1]:
            return f"{name} is not what was written: its SHA-256 differs"
    return None


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
