"""Matplotlib figures of runs, sized for papers. They are made without pyplot, so that no display is needed."""

import csv
import textwrap
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from attnjax import config as config_lib
from attnjax.errors import UserError
from attnjax.reports.lengths import Bucket
from attnjax.reports.runs import Curve
from attnjax.runs.records import read_rows

_NOT_PLOTTED = ("step", "split", "seconds", "loss", "accuracy", "perplexity", "nll")  # beside the panels of their own


def save(path: Path, figure: Figure, rows: Sequence[Mapping[str, Any]] = (), log: TextIO | None = None) -> None:
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


def _grid(rows: int, columns: int, size: tuple[float, float], **options) -> tuple[Figure, np.ndarray]:
    """Returns a figure of `size` inches and its axes (rows, columns)."""
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def side_by_side(count: int, size: tuple[float, float], **options) -> tuple[Figure, Sequence[Axes]]:
    """Returns a figure of `size` inches with plots side by side."""
    figure, axes = _grid(1, count, size, **options)
    for axis in axes[0]:
        axis.grid(alpha=0.3)
    return figure, axes[0]


def learning_curve(workdir: Path) -> Figure:
    """Returns loss and accuracy against steps, on training and validation data, and what else is validated.

    Training is shown by its plain loss, without smoothing and mixing, where the run logged it: `nll`.
    """
    damage: list[str] = []
    rows = read_rows(workdir, damage, complete=True)
    if damage:
        raise UserError(damage[0])
    if not rows:
        raise UserError(f"'{workdir}' has no metrics.jsonl: nothing was trained here")
    others = {name for row in rows if row["split"] == "validation" for name in row if name not in _NOT_PLOTTED}
    augment = config_lib.read(workdir / "config.json").data.get("augment", {})
    mixed = augment.get("mixup") or augment.get("cutmix")
    labels = {"train": "train, on mixed images" if mixed else "train", "validation": "validation"}
    figure, axes = side_by_side(2 + len(others), (4.5 * (2 + len(others)), 3.4))
    logged = any("nll" in row for row in rows)
    for axis, name in zip(axes, ("loss", "accuracy", *sorted(others)), strict=True):
        for split, color, marker, width in (("train", "0.6", "", 1), ("validation", "C0", ".", 1.5)):
            field = "nll" if logged and (split, name) == ("train", "loss") else name
            points = [(row["step"], row[field]) for row in rows if row["split"] == split and field in row]
            if points:
                axis.plot(*zip(*points, strict=True), label=labels[split], color=color, marker=marker, lw=width)
        axis.set(xlabel="step", ylabel=name)
    axes[0].legend(frameon=False)
    axes[1].set_ylim(top=1)
    return figure


def learning_curves(panels: Mapping[str, Mapping[str, Curve]]) -> Figure:
    """Returns one plot per panel, with a line for each label's mean and a band of one deviation."""
    figure, axes = side_by_side(max(1, len(panels)), (11, 4.2))
    labels = list(dict.fromkeys(label for curves in panels.values() for label in curves))
    handles: dict[str, Line2D] = {}
    for axis, (name, curves) in zip(axes, panels.items(), strict=False):
        for label, (steps, mean, deviation) in curves.items():
            color, marker = f"C{labels.index(label) % 10}", "." if len(steps) < 40 else ""
            (line,) = axis.plot(steps, mean, color=color, lw=1.5, marker=marker)
            handles.setdefault(label, line)
            axis.fill_between(steps, mean - deviation, mean + deviation, color=color, alpha=0.15, lw=0)
        axis.set(xlabel="step", ylabel=name)
    if labels:
        lines, names = [handles[label] for label in labels], [plain(label) for label in labels]
        figure.legend(lines, names, loc="outside lower center", ncols=3, frameon=False)
    return figure


def plain(text: str) -> str:
    """Returns text that matplotlib shows as it is: it sets what is between dollar signs, and fails on broken UTF-8."""
    return text.encode(errors="backslashreplace").decode().replace("$", r"\$")


def accuracy_by_length(runs: Mapping[str, Sequence[Bucket]]) -> Figure:
    """Returns exact match and subword accuracy against source length: one line per run, one point per bucket.

    Below each bucket is the number of its sentence pairs, of each run where they differ.
    """
    figure, axes = side_by_side(2, (9, 3.4), sharey=True)
    labels = {"exact_match": "exact match", "accuracy": "subword accuracy"}
    for axis, (field, label) in zip(axes, labels.items(), strict=True):
        for (name, buckets), marker, style in zip(runs.items(), cycle("os^Dv"), cycle(("-", "--", "-.")), strict=False):
            middles = [(bucket.shortest + bucket.longest) / 2 for bucket in buckets]
            values = [getattr(bucket, field) for bucket in buckets]
            axis.plot(middles, values, label=plain(name), marker=marker, linestyle=style, markersize=5)
        axis.set(xlabel="source length (subwords), and sentence pairs", ylabel=label, ylim=(-0.03, 1.03))
        spans = sorted({(bucket.shortest, bucket.longest) for buckets in runs.values() for bucket in buckets})
        ticks = [f"{shortest}-{longest}\n{_pairs(runs, shortest)}" for shortest, longest in spans]
        axis.set_xticks([sum(span) / 2 for span in spans], ticks, fontsize=7)
    axes[1].legend(frameon=False)
    return figure


def _pairs(runs, shortest):
    """Returns the number of pairs in a bucket as text."""
    counts = [bucket.pairs for buckets in runs.values() for bucket in buckets if bucket.shortest == shortest]
    return "n=" + "/".join(f"{count:,}" for count in dict.fromkeys(counts))


def step_times(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Returns the time of a training step against sentence length: one line per config.

    `rows` are those of `experiments/benchmark.py step`.
    """
    figure, (axis,) = side_by_side(1, (5.4, 3.6))
    for config, marker, style in zip(dict.fromkeys(row["config"] for row in rows), cycle("os^Dv"), cycle(("-", "--"))):
        points = sorted((row["length"], row["milliseconds"]) for row in rows if row["config"] == config)
        file, _, arguments = config.partition(":")
        label = plain(", ".join(filter(None, (Path(file).stem, arguments.replace(",", ", ")))))
        axis.plot(*zip(*points, strict=True), label=label, marker=marker, linestyle=style, markersize=5)
    lengths = sorted({row["length"] for row in rows})
    axis.set(
        xscale="log", xlabel="tokens per sentence (batches of one size)", ylabel="training step (ms)", ylim=(0, None)
    )
    axis.set_xticks(lengths, lengths)
    axis.minorticks_off()
    axis.legend(frameon=False, fontsize=9)
    return figure


def alignment(weights: np.ndarray, source: Sequence[str], target: Sequence[str], title: str) -> Figure:
    """Returns attention weights (T, S): one row per target subword, one column per source subword."""
    figure, [[axis]] = _grid(1, 1, (1.6 + 0.3 * len(source), 1.4 + 0.26 * len(target)))
    image = axis.imshow(weights, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axis.set_xticks(range(len(source)), map(plain, source), rotation=90)
    axis.set_yticks(range(len(target)), map(plain, target))
    axis.xaxis.tick_top()
    axis.set(xlabel="source", ylabel="output")
    axis.set_title(plain(title), fontsize=9)
    figure.colorbar(image, label="attention weight")
    return figure


def words_over_image(weights: np.ndarray, image: np.ndarray, words: Sequence[str], title: str) -> Figure:
    """Returns the image and, for each of T words, its weights (T, rows, columns) over the image.

    `image` is (H, W, C) in [0, 1], grayscale or RGB.
    """
    names = ["image", *(word.replace("\u2581", "") or word for word in words)]
    columns = min(6, len(names))
    rows = -(-len(names) // columns)
    figure, axes = _grid(rows, columns, (1.5 * columns, 1.7 * rows))
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, overlay, name in zip(axes.flat, [None, *weights], names, strict=False):
        _draw_image(axis, image, overlay)
        axis.set_title(plain(name), fontsize=9)
    figure.suptitle(plain(title), fontsize=9)
    return figure


def captions(images: np.ndarray, texts: Sequence[str]) -> Figure:
    """Returns images (B, H, W, C) in [0, 1], each with its text below."""
    columns = min(4, len(images))
    rows = -(-len(images) // columns)
    figure, axes = _grid(rows, columns, (3 * columns, 3.4 * rows))
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, image, text in zip(axes.flat, images, texts, strict=False):
        _draw_image(axis, image)
        axis.set_title(plain("\n".join(textwrap.wrap(text, 34))), fontsize=8, y=0, va="top")
    return figure


def patch_attention(heads: np.ndarray, rollout: np.ndarray, images: np.ndarray, labels: Sequence[str]) -> Figure:
    """Returns one row per image: the image with its label, each head's map over it, and the rollout.

    `heads` (B, heads, rows, columns) and `rollout` (B, rows, columns) are those of `reports.attention.patch_attention`,
    `images` is (B, H, W, C) in [0, 1].
    """
    titles = ["image", *(f"head {h}" for h in range(heads.shape[1])), "rollout"]  # from 0, as in `attention.select`
    figure, axes = _grid(len(images), len(titles), (1.25 * len(titles), 1.25 * len(images) + 0.5))
    for b, row in enumerate(axes):
        row[0].set_ylabel(plain(labels[b]), rotation=0, ha="right", va="center")
        for axis, overlay in zip(row, [None, *heads[b], rollout[b]], strict=True):
            _draw_image(axis, images[b], overlay)
            axis.set(xticks=[], yticks=[])
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=9)
    return figure


def _draw_image(axis, image, overlay=None):
    extent = (0, image.shape[1], image.shape[0], 0)
    axis.imshow(image, cmap="gray", extent=extent)
    if overlay is not None:
        axis.imshow(overlay, cmap="inferno", extent=extent, alpha=0.65, interpolation="bilinear")
