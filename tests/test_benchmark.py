"""experiments/benchmark.py: training steps against sentence length, and the data pipeline."""

import csv
import re

import jax
import matplotlib.pyplot as plt
import pytest
from PIL import Image

from attnjax.reports import figures

CONFIG = "configs/numwords_transformer.py"
SMALL = {"model.width": 8, "model.num_heads": 1, "model.encoder_depth": 1, "model.decoder_depth": 1}
SMALL |= {"data.vocabulary.size": 20, "data.batching.max_tokens": 64}


@pytest.fixture(autouse=True)
def at_the_root_on_one_device(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)
    for count in ("device_count", "local_device_count"):
        monkeypatch.setattr(jax, count, lambda: 1)


def test_steps_of_several_lengths_are_plotted(entry, tmp_path):
    out = tmp_path / "new" / "steps.png"
    small = [f"--config.{name}={value}" for name, value in SMALL.items()]
    given = ("--config", CONFIG, *small, "--length", 4, 8, "--rounds", 1)
    code, said, err = entry("benchmark", "step", *given, "--figure", out)
    assert code == 0, err
    assert out.read_bytes().startswith(b"\x89PNG")
    with open(out.with_suffix(".csv"), newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["config"], row["length"]) for row in rows] == [(CONFIG, "4"), (CONFIG, "8")]
    for row in rows:  # 64 tokens, in 16 sentences or 8
        assert float(row["tokens_per_second"]) * float(row["milliseconds"]) == pytest.approx(64_000)
    assert "training step, 4 tokens" in said and said.count("tokens/s") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("step", "--config", CONFIG, "--length", 4), "needs configs of translation and several lengths"),
        (("step", "--config", "configs/digits_vit.py", "--length", 4, 8), "needs configs of translation"),
        (("step", "--config", "configs/flickr8k_captioner.py", "--length", 4, 8), "no random data for task=captioning"),
        (("layouts",), "--figure is for step"),
    ],
)
def test_a_figure_needs_translation_and_several_lengths(arguments, message, entry, tmp_path):
    code, said, err = entry("benchmark", *arguments, "--figure", tmp_path / "steps.png")
    assert (code, said, err.count("\n")) == (2, "", 1) and message in err


def test_one_line_per_config():
    specs = ("configs/a.py:width=8,size=S/16", "b.py")
    rows = [{"config": c, "length": n, "milliseconds": n * k} for n in (8, 4) for k, c in enumerate(specs, 1)]
    figure = figures.step_times(rows)
    lines = figure.get_axes()[0].get_lines()
    assert [line.get_label() for line in lines] == ["a, width=8, size=S/16", "b"]
    assert [line.get_xdata().tolist() for line in lines] == [[4, 8]] * 2
    assert [line.get_ydata().tolist() for line in lines] == [[4, 8], [8, 16]]
    plt.close(figure)


def test_the_data_pipeline_alone(entry, tmp_path):
    for name in ("train/a", "train/b"):
        (tmp_path / name).mkdir(parents=True)
        for i in range(20):
            Image.new("RGB", (40, 30), (i, 100, 200)).save(tmp_path / name / f"{i}.png")
    options = ("--config.data.source", f"folder:{tmp_path}", "--config.batch_size=8", "--seconds", 0.3)
    code, said, err = entry("benchmark", "data", "--config", "configs/folder_vit.py", *options, "--workers", 1, 3)
    assert code == 0, err
    rates = re.findall(r"(\d+) threads? +([\d,]+) images/s +x([\d.]+)", said)
    assert [threads for threads, _, _ in rates] == ["1", "3"] and rates[0][2] == "1.00"
    stages = re.findall(r"(\S.*\S) +([\d.]+) us per image +([\d.]+)%", said)
    names = ["read", "decode", "crop and resize", "colour", "batch", "copy to the device", "on the device"]
    assert [name for name, _, _ in stages] == names
    assert sum(float(share) for _, _, share in stages) == pytest.approx(100, abs=0.5)
    assert float(dict((name, time) for name, time, _ in stages)["crop and resize"]) > 0
    assert "peak memory" in said


def test_the_text_pipeline_alone(entry):
    code, said, err = entry("benchmark", "data", "--config", CONFIG, "--seconds", 0.2)
    assert code == 0 and re.search(r"reading +[\d,]{4,} tokens/s", said), err
    code, _, err = entry("benchmark", "data")
    assert (code, err) == (2, "error: data needs --config configs/X.py\n")
