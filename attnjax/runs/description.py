"""What a run is: its config, its data and its task's files. They are written to the run folder, and each checkpoint
keeps a copy, so that whatever was lost or changed since is noticed before it changes a result."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from attnjax import config as config_lib
from attnjax.errors import UserError
from attnjax.files import reason, write_atomically, writing
from attnjax.runs.experiment import Experiment
from attnjax.runs.reader import latest_record
from attnjax.tasks import Task

CONFIG_FILE = "config.json"
DATA_FILE = "data.json"
# Keys of a checkpoint's record: what the run is, and the message with which an example that is unreadable ended it.
_RUN, UNREADABLE = "run", "unreadable"


def write_description(workdir: Path, experiment: Experiment, data: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Writes the run folder's config.json, data.json (for the reader) and the task's files; `data` is a `fingerprint`.

    Returns what a checkpoint's record should have of them; only the first of several processes writes and returns it.
    """
    if jax.process_index():
        return {}
    with writing(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        files = experiment.task.save(workdir)
        if data:
            write_atomically(workdir / DATA_FILE, json.dumps(data, indent=2) + "\n")
        config_lib.save(experiment.config, workdir / CONFIG_FILE)
        digests = {str(path.relative_to(workdir)): _digest(path) for path in files}
    return {_RUN: {"config": config_lib.to_json(experiment.config), "data": data or {}, "files": digests}}


def fingerprint(task: Task) -> dict[str, str]:
    """Returns field -> value of what decides which batches are read; UserError if the data cannot be read."""
    try:
        return task.fingerprint()
    except OSError as error:
        raise UserError(f"cannot read the data: {error.filename}: {reason(error)}") from error


def changes(record: Mapping[str, Any], workdir: Path, config: ConfigDict) -> list[str]:
    """Returns how a config, and the task's files in the run folder, differ from those that a checkpoint recorded."""
    if _RUN not in record:
        return ["the checkpoint does not say what it was trained with"]
    files = record[_RUN]["files"].items()
    changed = [f"{name} is missing or was changed" for name, digest in files if _digest(workdir / name) != digest]
    return config_lib.differences(_recorded_config(record), config) + changed


def _recorded_config(record):
    return config_lib.from_json(record[_RUN]["config"], "the checkpoint's config")


def check_config(record: Mapping[str, Any], workdir: Path, config: ConfigDict, *, accept: bool) -> list[str]:
    """Returns lines on how config and files differ from those of the checkpoint that a training resumes from.

    UserError if they do, unless `accept`, but for fields that cannot change its weights.
    """
    found = changes(record, workdir, config)
    if found and not accept:
        raise UserError(
            f"'{workdir}' holds a run of another config ({listed(found)}). Use another --workdir, start from its "
            f"weights by --config.init_from={workdir}, or go on with the changes by --accept_changes"
        )
    if _RUN in record:
        found += _tolerated(_recorded_config(record), config)
    return [f"accepted: {change}" for change in found]


def _tolerated(old, new):
    """Returns those differences that are not refused, but change what is done with an example that is unreadable."""
    others = [field for field in config_lib.flat(new) if field not in config_lib.TOLERANCE_FIELDS]
    return config_lib.differences(old, new, others)


def check_data(record: Mapping[str, Any], workdir: Path, new: Mapping[str, str], *, accept: bool) -> list[str]:
    """Returns lines on how a `fingerprint` differs from that of the checkpoint that a training resumes from.

    UserError if they do, unless `accept`, or the contents alone differ and it ended at an example that it could not
    read, which is then taken as repaired.
    """
    old = record.get(_RUN, {}).get("data", {})
    # Any number of processes shares the same global batches.
    names = [name for name in sorted(old.keys() | new.keys()) if name != "processes" and old.get(name) != new.get(name)]
    found = [f"{name}: {old.get(name)} -> {new.get(name)}" for name in names]
    repaired = UNREADABLE in record and all(name.endswith(" content") for name in names)
    if found and not (accept or repaired):
        raise UserError(
            f"the data are not those that the run in '{workdir}' began with: {listed(found)}. Bring them back, use "
            "another --workdir, or go on with these by --accept_changes"
        )
    if found and repaired:
        found.append(f"it had ended: {record[UNREADABLE]}")
    return [f"accepted: {change}" for change in found]


def listed(found: Sequence[str]) -> str:
    """Returns the first changes of a list as text."""
    return "; ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")


def read_config(workdir: Path, *, accept: bool = False) -> ConfigDict:
    """Returns the config of a run folder; UserError if it is damaged, or, unless `accept`, not its checkpoints'."""
    config = config_lib.read(workdir / CONFIG_FILE)
    if not accept and (record := latest_record(workdir)):
        check_unchanged(record, workdir, config)
    return config


def check_unchanged(record: Mapping[str, Any], workdir: Path, config: ConfigDict) -> None:
    """Raises UserError if the config and the task's files in a run folder are not what a checkpoint recorded."""
    if found := changes(record, workdir, config):
        raise UserError(
            f"'{workdir / CONFIG_FILE}' and its neighbours are not what the run was trained with: {listed(found)}. "
            "Undo that, or accept it by --accept_changes"
        )


def _digest(path):
    """Returns the SHA-256 of a file, "" if it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""
