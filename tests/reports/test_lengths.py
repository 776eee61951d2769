import csv
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

from attnjax import config as config_lib
from attnjax.data.builders import symbols
from attnjax.reports import figures
from attnjax.reports.lengths import Bucket, by_length
from attnjax.runs import folder as folder_lib
from attnjax.runs.experiment import Experiment
from attnjax.tasks.translation import Candidate, TranslationTask
from tests.states import random_state

CONFIGS = Path(__file__).parents[2] / "configs"


def test_hand_made_translations():
    rows = [  # source length, hypothesis, reference; in comments the matching positions
        (1, [4], [4]),  # 1 of 1
        (2, [4, 5], [5, 4]),  # 0 of 2
        (2, [6, 7, 8], [6, 7]),  # too long: 2 of 3
        (3, [6], [6, 7, 8, 9]),  # too short: 1 of 4
        (7, [], [4, 5]),  # nothing: 0 of 2
        (8, [4, 5, 6, 9], [4, 5, 6, 7]),  # 3 of 4
        (9, [5, 6], [5, 6]),  # 2 of 2
    ]
    assert by_length(*zip(*rows, strict=True), width=2) == [
        Bucket(1, 2, 3, 1 / 3, 3 / 6),
        Bucket(3, 4, 1, 0.0, 1 / 4),
        Bucket(7, 8, 2, 0.0, 3 / 6),
        Bucket(9, 10, 1, 1.0, 1.0),
    ]


def test_inputs_of_different_length_are_refused():
    with pytest.raises(ValueError):
        by_length([1, 2], [[4]], [[4]])


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """An untrained run of sequence reversal, for hand-made translations."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(symbols, "SIZES", {"train": 390, "validation": 39, "test": 39})
        config = config_lib.load(str(CONFIGS / "reverse.py:model=lstm"))
        config.data.data_dir, config.model.width = str(tmp_path_factory.mktemp("tfds")), 8
        folder = tmp_path_factory.mktemp("runs") / "hand_made"
        experiment = Experiment.from_config(config, folder)
        folder_lib.save_weights(folder, experiment, random_state(experiment))
    return folder


def translate_by_hand(task, variables, lines):
    """Reverses up to 20 symbols; of longer lines it copies the first half and drops the rest."""
    words = [line.split() for line in lines]
    outputs = [row[::-1] if len(row) <= 20 else row[: len(row) // 2] for row in words]
    return [[Candidate(" ".join(row), 0.0, (), ())] for row in outputs]


def test_runs_are_compared_by_length(run_folder, entry, monkeypatch, tmp_path):
    monkeypatch.setattr(TranslationTask, "translate", translate_by_hand)
    code, out, err = entry("figures", "--lengths", tmp_path / "new" / "reach.png", run_folder)
    assert code == 0 and "reach.png" in out and "reach.csv" in out, err
    assert (tmp_path / "new" / "reach.png").read_bytes().startswith(b"\x89PNG")
    with open(tmp_path / "new" / "reach.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["longest"]) for row in rows] == [5, 10, 15, 20, 25, 30, 35, 40]
    assert [int(row["pairs"]) for row in rows] == [4, 5, 5, 5, 5, 5, 5, 5]
    assert {row["run"] for row in rows} == {"hand_made"}
    assert [float(row["exact_match"]) for row in rows] == [1.0] * 4 + [0.0] * 4
    assert all(float(row["accuracy"]) == 1 for row in rows[:4])
    assert all(float(row["accuracy"]) < 0.15 for row in rows[4:])


@pytest.mark.parametrize("runs", [0, 2])
def test_runs_need_different_names(run_folder, entry, tmp_path, runs):
    code, _, err = entry("figures", "--lengths", tmp_path / "reach.png", *[run_folder] * runs)
    assert code == 2 and "different names" in err


def test_captions_are_below_their_images():
    figure = figures.captions(np.zeros((5, 4, 6, 3)), ["a $b$", *"wxyz"])
    titles = [axis.get_title() for axis in figure.get_axes()]
    assert titles == ["a \\$b\\$", "w", "x", "y", "z", "", "", ""]


def test_figure_has_one_line_per_run():
    figure = figures.accuracy_by_length(
        {"near": [Bucket(1, 5, 10, 1.0, 1.0), Bucket(6, 10, 10, 0.0, 0.5)], "far": [Bucket(1, 5, 10, 1.0, 0.9)]}
    )
    exact, accuracy = figure.get_axes()
    assert [text.get_text() for text in accuracy.get_legend().get_texts()] == ["near", "far"]
    assert [line.get_xdata().tolist() for line in exact.get_lines()] == [[3.0, 8.0], [3.0]]
    assert [line.get_ydata().tolist() for line in accuracy.get_lines()] == [[1.0, 0.5], [0.9]]
    ticks = [tick.get_text() for tick in exact.get_xticklabels()]
    assert ticks == ["1-5\nn=10", "6-10\nn=10"]
    styles = {(line.get_marker(), line.get_linestyle()) for line in exact.get_lines()}
    assert len(styles) == 2  # also distinguishable in grayscale
    plt.close(figure)
