"""Summarizes run folders in tables and an HTML page: metrics by setting, with mean and deviation over seeds.

python experiments/report.py sweeps/X                  # writes report.csv, report.md and report.html into sweeps/X
python experiments/report.py runs/a runs/b --out DIR
"""

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table

from attnjax import cli
from attnjax.errors import UserError
from attnjax.files import write_atomically, writing
from attnjax.reports import render
from attnjax.reports.runs import Report, read


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", metavar="DIR", help="run folders, or folders of run folders")
    parser.add_argument("--out", type=Path, metavar="DIR", help="output folder; default: DIR, if there is only one")
    args = cli.parse_args(parser, overrides_allowed=False)
    if not args.out and len(args.folders) > 1:
        raise UserError("--out=DIR is needed to report on several folders")
    return args


def show(report: Report) -> None:
    """Prints the table of groups and the notes."""
    header, rows = render.table(report)
    table = Table(*header)
    for group, row in zip(report.groups, rows, strict=True):
        table.add_row(*row, style="bold" if group is report.best else None)
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 10_000
    console.print(table)
    for note in report.notes:
        console.print(note, markup=False)


def main() -> None:
    args = parse_args()
    report = read(args.folders)
    out = args.out or args.folders[0]
    title = ", ".join(folder.resolve().name for folder in args.folders)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / "report.csv", render.to_csv(report))
        write_atomically(out / "report.md", render.to_markdown(report))
        write_atomically(out / "report.html", render.to_html(report, title))
    show(report)
    print(f"wrote {out}/report.csv, report.md and report.html")


if __name__ == "__main__":
    cli.run(main)
