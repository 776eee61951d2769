"""Summarizes run folders in tables and an HTML page: metrics by setting, with mean and deviation over seeds.

python experiments/report.py sweeps/X                  # writes report.csv, report.md and report.html into sweeps/X
python experiments/report.py runs/a runs/b --out DIR
"""

import argparse
from pathlib import Path

from attnjax import cli
from attnjax.errors import UserError
from attnjax.files import write_atomically, writing


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", metavar="DIR", help="run folders, or folders of run folders")
    parser.add_argument("--out", type=Path, metavar="DIR", help="output folder; default: DIR, if there is only one")
    args = cli.parse_args(parser, overrides_allowed=False)
    if not args.out and len(args.folders) > 1:
        raise UserError("--out=DIR is needed to report on several folders")
    return args


def main() -> None:
    args = parse_args()
    from attnjax.reports import render
    from attnjax.reports.runs import read

    report = read(args.folders)
    out = args.out or args.folders[0]
    title = ", ".join(folder.resolve().name for folder in args.folders)
    texts = {"report.csv": render.to_csv(report), "report.md": render.to_markdown(report)}
    texts["report.html"] = render.to_html(report, title)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            write_atomically(out / name, text.encode(errors="backslashreplace"))
    render.show(report)
    print(f"wrote {out}/report.csv, report.md and report.html")


if __name__ == "__main__":
    cli.run(main)
