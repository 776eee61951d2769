"""Makes tables and a page of run folders: metrics by what differs between them, mean and deviation over seeds.

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
from attnjax.reports import runs as report_lib


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", metavar="DIR", help="run folders, or folders of them")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write; default: the one DIR that was given")
    args = cli.parse_args(parser)
    if args.overrides:
        raise UserError("report takes no --config overrides")
    if not args.out and len(args.folders) > 1:
        raise UserError("--out=DIR is needed to report on several folders")
    report = report_lib.read(args.folders)
    out = args.out or args.folders[0]
    title = ", ".join(folder.resolve().name for folder in args.folders)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / "report.csv", report_lib.to_csv(report))
        write_atomically(out / "report.md", report_lib.to_markdown(report))
        write_atomically(out / "report.html", report_lib.to_html(report, title))
    head, rows = report_lib.table(report)
    table = Table(*head)
    for group, row in zip(report.groups, rows, strict=True):
        table.add_row(*row, style="bold" if group is report.best else None)
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 10_000
    console.print(table)
    for line in (*report.notes, f"written: {out}/report.csv, report.md and report.html"):
        console.print(line, markup=False)


if __name__ == "__main__":
    cli.run(main)
