"""experiments/tables.py: what is printed, and the figure with its numbers."""

import csv

import matplotlib.pyplot as plt
import pytest

from attnjax.analysis import figures


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
    assert sum("~ tokens^" in line for line in lines) == 6  # no time of global attention at two sizes


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


def test_what_was_not_run_is_not_drawn():
    row = {"pass": "forward", "image_size": 56, "tokens": 196, "window_ms": 1.0, "global_ms": None}
    row |= {"window_mib": 2.0, "global_mib": 3.0}
    figure = figures.attention_cost([row], {("window_ms", "forward"): 1.02})
    time, memory = ([line.get_label() for line in axis.get_lines()] for axis in figure.get_axes())
    assert time == ["window, forward $\\sim N^{1.02}$"] and memory == ["window, forward", "global, forward"]
    plt.close(figure)
