"""Writes figures, and the numbers in them as CSV."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from matplotlib.figure import Figure

from attnjax.errors import UserError


def save_figure(path: Path, figure: Figure, rows: Sequence[Mapping[str, Any]] = (), log: TextIO | None = None) -> None:
    """Writes a figure in the format of the path's suffix, and `rows`, all of the same columns, beside it as CSV.

    "wrote PATH" is printed to `log`, stdout if None. UserError if a file cannot be written or the format is unknown.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
        print(f"wrote {path}", file=log)
        if rows:
            path = path.with_suffix(".csv")
            with path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, rows[0], lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
            print(f"wrote {path}", file=log)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write '{path}': {error}") from None


def svg(figure: Figure) -> str:
    """Returns a figure as an SVG element to embed in HTML."""
    out = io.StringIO()
    figure.savefig(out, format="svg")
    text = out.getvalue()
    return text[text.index("<svg") :]
