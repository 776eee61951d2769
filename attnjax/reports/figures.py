"""Figures of a run, readable in a paper."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from attnjax.errors import UserError
from attnjax.models.vit import patch_grid
from attnjax.reports.attention import attention_maps, over_patches, rollout
from attnjax.reports.lengths import Bucket
from attnjax.runs.folder import Run
from attnjax.runs.log import read_rows


def learning_curve(workdir: Path):
    """Returns a figure of loss and accuracy against steps, training and validation, from a run's metrics.jsonl."""
    rows = read_rows(workdir)
    if not rows:
        raise UserError(f"'{workdir}' has no metrics.jsonl: nothing was trained here")
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for axis, name in zip(axes, ("loss", "accuracy"), strict=True):
        for split, style in (("train", dict(color="0.6", lw=1)), ("validation", dict(color="C0", marker=".", lw=1.5))):
            points = [(row["step"], row[name]) for row in rows if row["split"] == split and name in row]
            if points:
                axis.plot(*zip(*points, strict=True), label=split, **style)
        axis.set(xlabel="step", ylabel=name)
        axis.grid(alpha=0.3)
    axes[0].legend(frameon=False)
    axes[1].set_ylim(top=1)
    return figure


def learning_curves(panels: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]]]):
    """Returns a figure with a panel each, of lines with bands: label -> steps, mean and deviation, each (steps)."""
    figure, axes = plt.subplots(1, max(1, len(panels)), figsize=(11, 4.2), layout="constrained", squeeze=False)
    labels = list(dict.fromkeys(label for lines in panels.values() for label in lines))
    for axis, (name, lines) in zip(axes[0], panels.items(), strict=False):
        for label, (steps, mean, deviation) in lines.items():
            color = f"C{labels.index(label) % 10}"
            axis.plot(steps, mean, label=label, color=color, lw=1.5, marker="." if len(steps) < 40 else "")
            axis.fill_between(steps, mean - deviation, mean + deviation, color=color, alpha=0.15, lw=0)
        axis.set(xlabel="step", ylabel=name)
        axis.grid(alpha=0.3)
    if labels:
        figure.legend(*axes[0, -1].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def accuracy_by_length(runs: dict[str, list[Bucket]]):
    """Returns a figure of exact match and subword accuracy against source length: a line a run, a point a bucket."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained", sharey=True)
    for axis, field in zip(axes, ("exact_match", "accuracy"), strict=True):
        for (name, buckets), marker, style in zip(runs.items(), cycle("os^Dv"), cycle(("-", "--", "-.")), strict=False):
            middles = [(bucket.shortest + bucket.longest) / 2 for bucket in buckets]
            values = [getattr(bucket, field) for bucket in buckets]
            axis.plot(middles, values, label=name, marker=marker, linestyle=style, markersize=5)
        axis.set(xlabel="source length (subwords)", ylim=(-0.03, 1.03))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("sequences without a mistake")
    axes[1].set_ylabel("subwords in their place")
    axes[1].legend(frameon=False)
    return figure


def attention_cost(rows: Sequence[Mapping[str, Any]], exponents: Mapping[tuple[str, str], float]):
    """Returns a figure of time and memory against tokens, logarithmic, for attention in windows and over all tokens.

    `rows` are those of `experiments/tables.py swin_cost`; the legend has the exponents, by column and pass.
    """
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    for axis, unit, title in zip(axes, ("ms", "mib"), ("time (ms)", "memory (MiB)"), strict=True):
        for name, color, marker in (("window", "C0", "o"), ("global", "C3", "s")):
            column = f"{name}_{unit}"
            for direction, style in (("forward", "-"), ("gradient", "--")):
                points = [(row["tokens"], row[column]) for row in rows if row["pass"] == direction and row[column]]
                power = exponents.get((column, direction))
                label = f"{name}, {direction}" + (f" $\\sim N^{{{power:.2f}}}$" if power else "")
                if points:
                    line = dict(color=color, marker=marker, linestyle=style, markersize=4)
                    axis.plot(*zip(*points, strict=True), label=label, **line)
        axis.set(xscale="log", yscale="log", xlabel="tokens $N$ (pixels a side)", ylabel=title)
        ticks = {row["tokens"]: f"{row['tokens']:,}\n({row['image_size']})" for row in rows}
        axis.set_xticks(list(ticks), list(ticks.values()), fontsize=7)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.legend(frameon=False, fontsize=9)
    return figure


def step_times(rows: Sequence[Mapping[str, Any]]):
    """Returns a figure of the time of a training step against the length of sentences: a line a config.

    `rows` are those of `experiments/benchmark.py step`.
    """
    figure, axis = plt.subplots(figsize=(5.4, 3.6), layout="constrained")
    for config, marker, style in zip(dict.fromkeys(row["config"] for row in rows), cycle("os^Dv"), cycle(("-", "--"))):
        points = sorted((row["length"], row["milliseconds"]) for row in rows if row["config"] == config)
        file, _, arguments = config.partition(":")
        label = ", ".join(filter(None, (Path(file).stem, arguments.replace(",", ", "))))
        axis.plot(*zip(*points, strict=True), label=label, marker=marker, linestyle=style, markersize=5)
    lengths = sorted({row["length"] for row in rows})
    axis.set(xscale="log", xlabel="tokens in a sentence (batches of one size)", ylabel="training step (ms)")
    axis.set_ylim(bottom=0)
    axis.set_xticks(lengths, lengths)
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, fontsize=9)
    return figure


def alignment(weights: np.ndarray, source: Sequence[str], target: Sequence[str], title: str):
    """Returns a figure of attention weights (T, S): a row per target subword, a column per source subword."""
    size = (1.6 + 0.3 * len(source), 1.4 + 0.26 * len(target))
    figure, axis = plt.subplots(figsize=size, layout="constrained")
    image = axis.imshow(weights, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axis.set_xticks(range(len(source)), source, rotation=90)
    axis.set_yticks(range(len(target)), target)
    axis.xaxis.tick_top()
    axis.set(xlabel="source", ylabel="output")
    axis.set_title(title, fontsize=9)
    figure.colorbar(image, label="attention weight")
    return figure


def words_over_image(weights: np.ndarray, image: np.ndarray, words: Sequence[str], title: str):
    """Returns a figure of the image and, for each word (T), of the weights (T, rows, columns) over it.

    `image` is (H, W, C) in [0, 1], grey or RGB.
    """
    columns = min(6, 1 + len(words))
    rows = -(-(1 + len(words)) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(1.5 * columns, 1.7 * rows), layout="constrained", squeeze=False)
    extent = (0, image.shape[1], image.shape[0], 0)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis in axes.flat[: 1 + len(words)]:
        axis.imshow(image.squeeze(), cmap="gray", extent=extent)
    axes.flat[0].set_title("image", fontsize=9)
    for axis, map_, word in zip(axes.flat[1:], weights, words, strict=False):
        axis.imshow(map_, cmap="inferno", extent=extent, alpha=0.65, interpolation="bilinear")
        axis.set_title(word.replace("\u2581", "") or word, fontsize=9)
    figure.suptitle(title, fontsize=9)
    return figure


def attention(run: Run, image: np.ndarray, label: np.ndarray):
    """Returns a figure of where a ViT looks: a row per image (B, H, W, C) as fed to the model, with its label (B,).

    Columns: the image, the class token's attention in the last layer for each head, and the rollout over all layers.
    """
    grid = patch_grid(image.shape[1:3], run.config.model.patch_size)
    weights = attention_maps(run, image)
    heads = over_patches(weights[-1], grid)
    rolled = over_patches(rollout(weights), grid)
    predicted = np.asarray(run.task.logits(run.params, run.model_state, image)).argmax(-1)

    columns = 2 + heads.shape[1]
    size = 1.25
    figure, axes = plt.subplots(
        len(image), columns, figsize=(size * columns, size * len(image) + 0.5), layout="constrained", squeeze=False
    )
    pixels = np.clip(image * np.asarray(run.config.data.std) + np.asarray(run.config.data.mean), 0, 1)
    extent = (0, image.shape[2], image.shape[1], 0)
    for b, row in enumerate(axes):
        row[0].imshow(pixels[b], cmap="gray", extent=extent)
        verdict = "" if predicted[b] == label[b] else f" (read as {run.workload.classes[predicted[b]]})"
        row[0].set_ylabel(f"{run.workload.classes[label[b]]}{verdict}", rotation=0, ha="right", va="center")
        for axis, map_ in zip(row[1:], [*heads[b], rolled[b]], strict=True):
            axis.imshow(pixels[b], cmap="gray", extent=extent)
            axis.imshow(map_, cmap="inferno", extent=extent, alpha=0.65, interpolation="bilinear")
        for axis in row:
            axis.set(xticks=[], yticks=[])
    titles = ["image", *(f"head {h + 1}" for h in range(heads.shape[1])), "rollout"]
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=9)
    return figure
