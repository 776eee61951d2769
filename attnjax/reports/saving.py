"""Writing figures and the numbers in them."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attnjax.errors import UserError


def save_figure(path: Path, figure, rows: Sequence[Mapping[str, Any]] = ()) -> None:
    """Writes a figure in the format of the file's suffix, its numbers, if any, beside it as CSV, and says so.

    `rows` have the same columns. UserError if a file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
        print(f"wrote {path}")
        if rows:
            _write_csv(path.with_suffix(".csv"), rows)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write '{path}': {error}") from None


def svg(figure) -> str:
    """Returns a figure as an SVG element, to be put into a page."""
    out = io.StringIO()
    figure.savefig(out, format="svg")
    text = out.getvalue()
    return text[text.index("<svg") :]


def _write_csv(path, rows):
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(f"wrote {path}")
