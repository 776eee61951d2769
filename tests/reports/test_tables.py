"""experiments/tables.py: printed tables, and the figure with its numbers."""

import csv
import functools
import runpy
from pathlib import Path

import pytest

from attnjax.reports import swin_cost
from attnjax.reports import tables as sizes


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_swin_cost(entry, tmp_path):
    out = tmp_path / "new" / "cost.png"
    code, said, err = entry(
        "tables", "swin_cost", "--image_size", 56, 112, "--rounds", 1, "--memory", 0.01, "--out", out
    )
    assert (code, err) == (0, "")
    assert out.read_bytes().startswith(b"\x89PNG")
    rows = rows_of(out.with_suffix(".csv"))
    assert [(row["pass"], int(row["tokens"])) for row in rows] == [
        (direction, tokens) for direction in ("forward", "gradient") for tokens in (196, 784)
    ]
    for row in rows:
        assert float(row["window_ms"]) > 0
        memory = float(row["global_mib"])
        assert (row["global_ms"] == "") == (row["time_ratio"] == "") == (memory > 10.24)
        assert float(row["memory_ratio"]) == pytest.approx(memory / float(row["window_mib"]))
    for smaller, larger in zip(rows[::2], rows[1::2], strict=True):  # four times the tokens
        growth = {name: float(larger[f"{name}_mib"]) / float(smaller[f"{name}_mib"]) for name in ("window", "global")}
        assert growth["window"] < 4 < 8 < growth["global"] < 16
    lines = said.splitlines()
    assert lines[1].split() == list(rows[0])
    assert lines[3].split()[:3] == ["forward", "112", "784"] and " - " in lines[3]
    assert sum("~ tokens^" in line for line in lines) == 6  # global attention is not timed at two sizes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rounds", 0], "should be 1 or more"),
        (["--image_size", 0, 56], "should be 1 or more"),
        (["--config.a=1"], "takes no --config overrides"),
        (["--image_size", 8, "--rounds", 1, "--out", "a.xyz"], "cannot write 'a.xyz'"),
    ],
)
def test_mistakes_are_one_line(options, message, entry):
    code, _, err = entry("tables", "swin_cost", *options)
    assert (code, err.count("\n")) == (2, 1) and message in err


def test_missing_times_are_not_plotted():
    row = {"pass": "forward", "image_size": 56, "tokens": 196, "window_ms": 1.0, "global_ms": None}
    row |= {"window_mib": 2.0, "global_mib": 3.0}
    figure = swin_cost.attention_cost([row], {("window_ms", "forward"): 1.02})
    time, memory = ([line.get_label() for line in axis.get_lines()] for axis in figure.get_axes())
    assert time == ["window, forward $\\sim N^{1.02}$"] and memory == ["window, forward", "global, forward"]


PARAMETERS = {
    "vit_sizes": [86_567_656, 88_224_232, 304_326_632, 306_535_400, 632_045_800],
    "swin_sizes": [
        *(86_859_496, 304_715_752, 22_050_664, 86_567_656),
        *(28_288_354, 49_606_258, 87_768_224, 87_903_584, 196_735_516),
    ],
    "resnet_sizes": [
        *(11_689_512, 21_797_672, 25_557_032, 44_549_160, 60_192_808),
        *(269_722, 464_154, 658_586, 853_018, 1_727_962),
    ],
    "crossvit_sizes": [7_014_800, 26_856_272, 105_025_232, 8_553_296, 27_528_464, 43_271_408],
    "transformer_sizes": [
        63_082_496,
        # Queries and keys of 18 attention layers, kernel and bias.
        *(63_082_496 - 18 * 2 * 513 * 8 * (64 - size) for size in (16, 32)),
        *(18_944_000 + layers * (3_152_384 + 4_204_032) for layers in (2, 4, 8)),
        *(26_834_944, 163_889_152),
        *(63_082_496 + 12 * (2 * 512 + 1) * (hidden - 2048) for hidden in (1024, 4096)),
        214_245_376,
    ],
}


@functools.cache
def table(name):
    return list(sizes.TABLES[name][0]())


@pytest.mark.parametrize("name", PARAMETERS)
def test_sizes(name):
    """Exact counts, and a paper's number in every row, close to ours."""
    rows = table(name)
    assert [row.parameters for row in rows] == PARAMETERS[name]
    assert all(row.millions or row.gflops for row in rows)
    for figure in (figure for row in rows for figure in (row.millions, row.gflops) if figure):
        assert abs(figure.difference) < 0.08


def test_sizes_as_printed(entry, monkeypatch):
    rows, (_, *notes) = table("transformer_sizes"), sizes.TABLES["transformer_sizes"]
    monkeypatch.setitem(sizes.TABLES, "transformer_sizes", (lambda: iter(rows), *notes))
    code, said, err = entry("tables", "transformer_sizes")
    assert (code, err) == (0, "")
    assert said.count("!= ") == sum(not row.millions.agrees for row in rows) == 11
    assert all(f"{row.parameters:,}" in said for row in rows) and "GFLOPs" not in said


def test_numbers_agree_to_the_papers_digits():
    assert sizes.Comparison(28.5, "29").agrees is False and sizes.Comparison(28.51, "29").agrees
    assert sizes.Comparison(4.549, "4.5").agrees and not sizes.Comparison(4.551, "4.5").agrees
    assert sizes.Comparison(110.0, "100").difference == pytest.approx(0.1)


def test_the_command_line_names_all_tables():
    tables = runpy.run_path(str(Path(__file__).parents[2] / "experiments" / "tables.py"))
    assert tables["NAMES"] == ("swin_cost", *sizes.TABLES)


def test_sizes_have_no_figure(entry):
    code, _, err = entry("tables", "vit_sizes", "--out", "a.png")
    assert (code, err.count("\n")) == (2, 1) and "has no figure" in err
