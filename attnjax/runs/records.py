"""Reading what runs and sweeps wrote about themselves, for those who only look: damage is skipped, and named."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attnjax.files import parse_checked
from attnjax.runs.folder import SUMMARY_FILE
from attnjax.runs.log import ROWS_FILE
from attnjax.runs.reader import latest_record

_SUMMARY = {"steps": int, "parameters": int, "finished": bool}


def read_record(path: Path, fields: Mapping[str, type], damage: list[str]) -> dict[str, Any]:
    """Returns the JSON object in a file, whose `fields` have these types where they are there.

    {} if the file is missing, or damaged, which adds a line to `damage`.
    """
    try:
        found = parse_checked(path.read_bytes(), path.name)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        damage.append(f"'{path}' is damaged: {error}")
        return {}
    for name, kind in fields.items():
        if name in found and type(found[name]) is not kind:
            damage.append(f"'{path}' is damaged: {name} is not of type {kind.__name__}")
            return {}
    return found


def read_summary(workdir: Path, damage: list[str]) -> dict[str, Any]:
    """Returns what `folder.write_summary` wrote; {} if no training has begun. See `read_record` for damage."""
    return read_record(workdir / SUMMARY_FILE, _SUMMARY, damage)


def read_rows(workdir: Path, damage: list[str], *, complete: bool = False) -> list[dict[str, Any]]:
    """Returns the rows of a run's metrics.jsonl that can be read; a line on the others is added to `damage`.

    With `complete`, also one where rows are missing that the latest checkpoint recorded. A last line without its end
    is not damage: the run may be writing it.
    """
    path, bad = workdir / ROWS_FILE, []
    rows: list[dict[str, Any]] = []
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        lines = []
    except OSError as error:
        damage.append(f"'{path}' cannot be read: {error.strerror}")
        return []
    for number, line in enumerate(lines, start=1):
        try:
            row = parse_checked(line, ROWS_FILE)
        except (ValueError, RecursionError):
            row = {}
        if _is_row(row):
            rows.append(row)
        else:
            bad.append(number)
    if bad:
        damage.append(
            f"'{path}' is damaged: {len(bad)} of {len(lines)} lines cannot be read, the first is line {bad[0]}"
        )
    recorded = (latest_record(workdir) or {}).get("rows", []) if complete else []
    if not bad and json.dumps(rows[: len(recorded)]) != json.dumps(recorded):
        damage.append(f"'{path}' is damaged: rows of the run are missing; resuming it restores them")
    return rows


def _is_row(row):
    """Whether this is a step, a split, and numbers."""
    if type(row.get("step")) is not int or not isinstance(row.get("split"), str):
        return False
    return all(type(value) in (int, float) for name, value in row.items() if name != "split")
