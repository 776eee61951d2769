"""Renders a report of runs on the terminal, and as CSV, Markdown and HTML."""

import csv
import html
import io
import re

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from attnjax.formatting import clock
from attnjax.reports import figures
from attnjax.reports.runs import Report, curve_notes, curves, shown

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #ddd }
th { border-bottom: 2px solid #888 } tr.best { font-weight: bold; background: #f0f6ff }
div.wide { overflow-x: auto } svg { max-width: 100%; height: auto }
"""


def table(report: Report) -> tuple[list[str], list[list[str]]]:
    """Returns the header and one row per group, as text."""
    header = [*report.settings.values(), "seeds", *report.metrics, "parameters", "time"]
    return header, [_row(report, group) for group in report.groups]


def _row(report, group):
    seconds = [run.seconds for run in group.runs if run.seconds is not None]
    counts = sorted({run.parameters for run in group.runs if run.parameters is not None})
    return [
        *("" if report.is_usual(name, value) else shown(value) for name, value in group.settings.items()),
        str(len(group.runs)),
        *(_mean(group, metric) for metric in report.metrics),
        ", ".join(f"{count:,}" for count in counts) or "-",
        clock(float(np.mean(seconds))) if seconds else "-",
    ]


def _mean(group, metric):
    mean, deviation = group.mean(metric), group.deviation(metric)
    if mean is None:
        return "-"
    digits = 4 if abs(mean) < 10 else 2
    return f"{mean:.{digits}f}" + ("" if deviation is None else f" ± {deviation:.{digits}f}")


def _runs(report):
    header = ["run", *report.settings, "seed", "finished", "steps", *report.metrics, "parameters", "seconds"]
    rows = []
    for run in report.runs:
        settings = [run.fields.get(key) for key in (*report.settings, "seed")]
        metrics = [run.metrics.get(name) for name in report.metrics]
        rows.append([run.name, *settings, run.finished, run.step, *metrics, run.parameters, run.seconds])
    return header, rows


def to_csv(report: Report) -> str:
    """Returns one line per run, with values of full precision: settings, seed, metrics, parameters, seconds."""
    header, rows = _runs(report)
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([[_cell(x) for x in row] for row in (header, *rows)])
    return out.getvalue()


def _cell(value):
    """Returns a value that no spreadsheet takes for a formula."""
    formula = isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r"))
    return f"'{value}" if formula else value


def to_markdown(report: Report) -> str:
    """Returns the table of groups and the notes."""
    header, rows = table(report)
    lines = [[_markdown(cell) for cell in header], ["---"] * len(header)]
    for group, row in zip(report.groups, rows, strict=True):
        cells = [_markdown(cell) for cell in row]
        lines.append([cell and f"**{cell}**" for cell in cells] if group is report.best else cells)
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return text + "\n\n" + "\n".join(f"- {_markdown(note)}" for note in report.notes) + "\n"


def _markdown(text):
    """Returns text as Markdown shows it, on one line: names and settings are not markup."""
    text = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"([\\`*\[\]|])", r"\\\1", text)


def to_html(report: Report, title: str) -> str:
    """Returns a self-contained page: the tables of groups and of runs, and the learning curves."""
    header, rows = table(report)
    runs_header, runs = _runs(report)
    out = io.StringIO()
    figures.learning_curves(curves(report)).savefig(out, format="svg")
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        _html_table(header, rows, [group is report.best for group in report.groups]),
        *(f"<p>{html.escape(note)}</p>" for note in report.notes),
        "<h2>Learning curves</h2>",
        *(f"<p>{html.escape(note)}</p>" for note in curve_notes(report)),
        out.getvalue()[out.getvalue().index("<svg") :],
        "<h2>Runs</h2>",
        _html_table(runs_header, [["" if x is None else str(x) for x in row] for row in runs], [False] * len(runs)),
    ]
    head = f"<style>{_STYLE}</style><title>{html.escape(title)}</title>"
    return f'<!DOCTYPE html><html lang="en"><meta charset="utf-8">{head}{"".join(parts)}</html>\n'


def show(report: Report) -> None:
    """Prints the table of groups and the notes."""
    header, rows = table(report)
    shown_table = Table(*map(escape, header))
    for group, row in zip(report.groups, rows, strict=True):
        shown_table.add_row(*map(escape, row), style="bold" if group is report.best else None)
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 10_000
    console.print(shown_table)
    for note in report.notes:
        console.print(note, markup=False, soft_wrap=True)


def _html_table(header, rows, bold):
    def line(cells, tag):
        return "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells)

    body = "".join(
        f"<tr{' class=best' if best else ''}>{line(row, 'td')}</tr>" for row, best in zip(rows, bold, strict=True)
    )
    return f"<div class=wide><table><tr>{line(header, 'th')}</tr>{body}</table></div>"
