"""The entry points as a user of translation runs them, on numbers spelled out in English and German."""

import json
import math
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import sacrebleu
from num2words import num2words

from attnjax import config as config_lib
from attnjax import models
from attnjax.runs import folder, loop
from attnjax.runs.compilation import CompiledStep
from attnjax.runs.experiment import Experiment
from attnjax.runs.folder import open_run
from attnjax.runs.initialise import initialise
from tests.states import random_state

CONFIG = Path(__file__).parent.parent / "configs" / "numwords_transformer.py"
# One width of batches, so that there is one step to compile; dropout on, so that its stream must survive a stop.
TINY = {
    "steps": 60,
    "log_every": 10,
    "eval_every": 60,
    "save_every": 20,
    "keep_checkpoints": 3,
    "model.width": 32,
    "model.mlp_dim": 32,
    "model.num_heads": 2,
    "model.encoder_depth": 1,
    "model.decoder_depth": 1,
    "model.max_length": 48,
    "data.validation": "val",
    "data.vocabulary.size": 70,
    "data.sampling.alpha": 0.1,
    "data.batching.max_tokens": 512,
    "data.batching.max_length": 32,
    "data.batching.shapes": 1,
    "decoding.beam_size": 2,
    "decoding.extra_length": 8,
    "optimizer.learning_rate": 1e-2,
    "optimizer.warmup_steps": 10,
}
SPLITS = {"train": range(0, 1000, 3), "val": range(1, 1000, 67), "test": range(2, 1000, 51)}


pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("numbers")
    for split, span in SPLITS.items():
        for language in ("en", "de"):
            write(folder / f"{split}.{language}", [num2words(number, lang=language) for number in span])
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory, numbers):
    """The run folder that the tests below look into."""
    workdir = tmp_path_factory.mktemp("runs") / "trained"
    config = config_lib.load(str(CONFIG))
    config_lib.override(config, {name: str(value) for name, value in TINY.items()}.items())
    config.data.source = f"text:{numbers}"
    loop.train(config, workdir)
    return workdir


def write(path, lines):
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def lines_of(path):
    return path.read_text(encoding="utf-8").splitlines()


def arguments(numbers, **changes):
    fields = TINY | {"data.source": f"text:{numbers}"} | {name.replace("__", "."): x for name, x in changes.items()}
    return ["--config", CONFIG, *(f"--config.{name}={value}" for name, value in fields.items())]


def kept(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").glob("[0-9]*"))


def assert_same_weights(one, other):
    a, b = open_run(one, "latest"), open_run(other, "latest")
    assert a.step == b.step
    jax.tree.map(np.testing.assert_array_equal, a.params, b.params)


# Training


def test_a_run_says_what_it_does(trained, rows):
    log = (trained / "train.log").read_text()
    for line in ("train       334 pairs en-de, text:", "vocabulary  70 subwords, bpe", "rows x tokens: 16x32"):
        assert line in log
    assert [row["step"] for row in rows(trained)] == [10, 20, 30, 40, 50, 60]
    assert rows(trained)[-1]["nll"] < rows(trained)[0]["nll"] - 0.5
    for row in rows(trained, "validation"):
        assert {"bleu", "exact_match", "accuracy", "loss", "perplexity"} < row.keys()
        assert row["perplexity"] == pytest.approx(math.exp(row["loss"]))
    assert kept(trained) == [20, 40, 60]


def test_a_stopped_run_goes_on_to_the_same_bits(trained, entry, tmp_path, rows):
    """Stopped after step 40, in the second epoch of 21; the subwords of each epoch are drawn again."""
    workdir = tmp_path / "stopped"
    shutil.copytree(trained, workdir)
    shutil.rmtree(workdir / "checkpoints" / "60")
    assert "batches     21 per epoch" in (workdir / "train.log").read_text()
    code, out, err = entry("train", "--workdir", workdir)
    assert code == 0, err
    assert "resumed from step 40" in out and "new run" not in out
    assert_same_weights(trained, workdir)
    assert rows(workdir)[-1] == rows(trained)[-1] and rows(workdir, "validation") == rows(trained, "validation")


def test_a_stopped_run_of_packed_rows_goes_on_to_the_same_bits(numbers, entry, tmp_path, monkeypatch, rows):
    changes = dict(steps=4, save_every=2, eval_every=4, data__batching__method="pack", data__validation="")
    changes |= dict(data__sampling__alpha=0.0, log_every=1, optimizer__warmup_steps=1)
    given = arguments(numbers, **changes)
    code, out, err = entry("train", *given, "--workdir", tmp_path / "whole")
    assert code == 0 and "new run, seed 0" in out, err

    take, steps = CompiledStep.__call__, []

    def stopping(*inputs):
        steps.append(1)
        if len(steps) == 3:
            raise KeyboardInterrupt
        return take(*inputs)

    with monkeypatch.context() as patch:
        patch.setattr(CompiledStep, "__call__", stopping)
        assert entry("train", *given, "--workdir", tmp_path / "stopped")[0] == 130
    assert kept(tmp_path / "stopped") == [2]
    code, out, err = entry("train", *given, "--workdir", tmp_path / "stopped")
    assert code == 0 and "resumed from step 2" in out, err
    assert_same_weights(tmp_path / "whole", tmp_path / "stopped")
    assert rows(tmp_path / "whole") == rows(tmp_path / "stopped")


def test_a_new_run_from_old_weights_has_their_vocabulary(trained, numbers, tmp_path):
    config = open_run(trained).config
    config.init_from, config.data.vocabulary.size, config.data.validation = str(trained), 60, ""
    experiment = Experiment.from_config(config, tmp_path)
    state, changes = initialise(experiment.create_state(), config)
    assert state.step == 0 and changes == []
    old = open_run(trained)
    jax.tree.map(np.testing.assert_array_equal, state.params, old.params)
    assert experiment.task.encode(["seventy-one"]) == old.task.encode(["seventy-one"])


# Measuring


@pytest.fixture(scope="module")
def evaluated(trained):
    """The translations of the test split."""
    run = open_run(trained)
    report = run.task.test("test", run.variables)
    return report.files["txt"].splitlines()


def test_evaluate_writes_scores_with_signatures_and_translations(trained, numbers, evaluated, entry, monkeypatch):
    """On eight devices, as on one."""
    for count in ("device_count", "local_device_count"):
        monkeypatch.setattr(jax, count, lambda: 8)
    code, out, err = entry("evaluate", "--workdir", trained)
    assert code == 0, err
    result = json.loads((trained / "evaluation_test.json").read_text())
    translations, references = lines_of(trained / "evaluation_test.txt"), lines_of(numbers / "test.de")
    assert translations == evaluated and len(set(translations)) > 5
    assert result["pairs"] == len(references) == len(translations) == 20
    assert result["bleu"] == pytest.approx(sacrebleu.corpus_bleu(translations, [references]).score)
    assert result["chrf"] == pytest.approx(sacrebleu.corpus_chrf(translations, [references]).score)
    assert "tok:13a" in result["bleu_signature"] and "case:mixed" in result["bleu_signature"]
    assert "nc:6" in result["chrf_signature"] and result["chrf"] > 10
    assert result["loss"] == pytest.approx(loss_by_hand(trained, numbers), rel=1e-4)
    assert "20 pairs, best checkpoint" in out and result["bleu_signature"] in out
    assert result["checkpoint"] == "best" and result["split"] == "test"


def loss_by_hand(workdir, numbers):
    run = open_run(workdir)
    vocabulary = run.task.vocabulary
    sides = [vocabulary.source.encode(lines_of(numbers / f"test.{language}")) for language in ("en", "de")]
    source, target = np.zeros((20, 32), np.int32), np.zeros((20, 32), np.int32)
    for row, (english, german) in enumerate(zip(*sides, strict=True)):
        source[row, : len(english) + 1] = [*english, 2]
        target[row, : len(german) + 2] = [1, *german, 2]
    logits = jax.jit(run.model.apply)({"params": run.params}, source, target[:, :-1])
    log_p = np.asarray(jax.nn.log_softmax(logits))
    labels = target[:, 1:]
    losses = -np.take_along_axis(log_p, labels[..., None], -1)[..., 0]
    return float(losses[labels > 0].mean())


def test_evaluate_lowercases_and_averages_if_asked(trained, entry):
    options = ["--config.bleu.lowercase=true", "--config.bleu.moses=true"]
    options += ["--config.decoding.beam_size=1", "--config.decoding.length_penalty=none"]
    code, _, err = entry("evaluate", "--workdir", trained, "--checkpoint", "average", "--split", "val", *options)
    assert code == 0, err
    (path,) = trained.glob("evaluation_val,average,bleu.lowercase=True,*.json")
    result = json.loads(path.read_text())
    assert result["checkpoint"] == "average" and result["step"] == 60 and result["pairs"] == 15
    assert "case:lc" in result["bleu_signature"] and "tok:moses-de" in result["tokenised_bleu_signature"]
    states = [open_run(trained, str(step)).params for step in (20, 40, 60)]
    average = open_run(trained, "average").params
    jax.tree.map(
        lambda mean, *leaves: np.testing.assert_allclose(mean, np.mean(leaves, 0), atol=1e-6), average, *states
    )


# Translating


@pytest.fixture
def translate(trained, entry, monkeypatch, tmp_path):
    """Runs translate.py on lines of bytes: translate(lines, *arguments) -> (exit code, lines, stderr)."""

    def call(lines, *arguments):
        (tmp_path / "stdin").write_bytes(b"".join(line + b"\n" for line in lines))
        with (tmp_path / "stdin").open(encoding="ascii") as stream:
            monkeypatch.setattr(sys, "stdin", stream)
            code, out, err = entry("translate", "--workdir", trained, *arguments)
        assert out.endswith("\n") or not out
        return code, out.split("\n")[:-1], err

    return call


HOSTILE = [
    b"",
    b"   \t ",
    b"\x01\x02\x1b\x7f",
    b"seven\x00hundred",
    b"\xff\xfe\xc3(",
    b"nine hundred " * 8_000,
    "चौंसठ ០១២ 七百 \U0001d7d9".encode(),
    b"two\rthree",
    "\u2028\u200b\ufeff".encode(),
]


def test_lines_in_are_lines_out_whatever_they_are(translate, numbers, evaluated):
    plain = [line.encode() for line in lines_of(numbers / "test.en")]
    code, out, err = translate(plain)
    assert code == 0 and out == evaluated, err

    mixed = list(plain)
    for place, line in enumerate(HOSTILE):
        mixed.insert(2 * place, line)
    code, out, err = translate(mixed)
    assert code == 0 and len(out) == len(mixed)
    hostile = out[: 2 * len(HOSTILE) : 2]
    assert [*out[1 : 2 * len(HOSTILE) : 2], *out[2 * len(HOSTILE) :]] == evaluated
    assert hostile[:3] == ["", "", ""] and hostile[8] == "" and all(hostile[3:8])
    assert "warning: truncated to 48 of" in err and "warning: not UTF-8" in err and err.count("\n") == 2


def test_best_lists_and_scores(translate, trained, entry):
    lines = ["seventy-one", "", "two hundred and five"]
    code, out, err = entry("translate", "--workdir", trained, "--nbest", 3, "--beam", 3, "--scores", *lines)
    assert code == 0, err
    found = [line.split("\t") for line in out.split("\n")[:-1]]
    assert len(found) == 9 and found[3] == ["0.0000", "", ""]
    for first in (0, 6):
        scores = [float(score) for score, _, _ in found[first : first + 3]]
        assert scores == sorted(scores, reverse=True) and scores[0] < 0
        assert len({subwords for _, _, subwords in found[first : first + 3]}) == 3
        for score, text, subwords in found[first : first + 3]:
            pieces, values = zip(*(part.rsplit(":", 1) for part in subwords.split(" ")), strict=True)
            assert pieces[-1] == "</s>" and "".join(pieces[:-1]).replace("▁", " ").strip() == text
            expected = sum(map(float, values)) / ((5 + len(values)) / 6) ** 0.6
            assert float(score) == pytest.approx(expected, abs=0.01)

    code, out, _ = translate([line.encode() for line in lines], "--nbest", 3)
    assert code == 0 and out == [text for _, text, _ in found]


def test_arguments_of_any_bytes_are_translated(entry, trained):
    code, out, err = entry("translate", "--workdir", trained, os.fsdecode(b"one\xff"), "one\ntwo")
    assert code == 0 and out.count("\n") == 2, err


def test_attention_is_drawn(entry, trained, tmp_path):
    path = tmp_path / "attention.png"
    given = ["--workdir", trained, "--attention", path]
    code, out, err = entry("translate", *given, "--layer", 0, "--head", 1, "seventy-one")
    assert code == 0 and out.count("\n") == 1 and str(path) in err
    assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5_000
    for options, message in [
        (["--layer", 1, "seventy-one"], "no layer 1, head None: there are 1 layers of 2 heads"),
        (["--head", 2, "seventy-one"], "no layer -1, head 2: there are 1 layers of 2 heads"),
        (["--attention", tmp_path / "a.xyz", "seventy-one"], "cannot write"),
        ([""], "the first line is empty"),
    ]:
        code, _, err = entry("translate", *given, *options)
        assert code == 2 and message in err and err.count("\n") == 1, options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--beam", 0], "beam_size is 0"),
        (["--beam", 2, "--nbest", 3], "n_best is 3"),
        (["--nbest", 0], "n_best is 0"),
        (["--beam", 10000], "--beam=10000: it should be at most 1000"),
        (["--checkpoint", 7], "Known: best, latest, average"),
        (["--config.decoding.beam_size=3"], "translate takes no --config overrides"),
    ],
)
def test_impossible_searches_are_refused(entry, trained, options, message):
    code, out, err = entry("translate", "--workdir", trained, *options, "one")
    assert code == 2 and out == "" and message in err and err.count("\n") == 1


def test_a_line_is_answered_before_the_next_one_comes(process, trained, numbers, evaluated):
    running = process("translate", "--workdir", trained, stdin=subprocess.PIPE)
    try:
        for line, expected in list(zip(lines_of(numbers / "test.en"), evaluated, strict=True))[:3]:
            running.stdin.write(line + "\n")
            running.stdin.flush()
            assert select.select([running.stdout], [], [], 300)[0], "no answer"
            assert running.stdout.readline() == expected + "\n"
        time.sleep(0.5)
        running.send_signal(signal.SIGINT)  # Ctrl-C, while it waits for a line
        assert running.wait(timeout=60) == 130  # before stdin is closed, which would end it too
        assert running.communicate() == ("", "interrupted\n")
    finally:
        running.kill()


# What is refused


def test_entry_points_refuse_runs_of_another_task(trained, entry, tmp_path):
    config = config_lib.classification()
    config.model, config.data.image_size = models.fields("mlp", widths=(4,)), (2, 2)
    experiment = Experiment.classifier(config, ("a", "b"))
    folder.save_weights(tmp_path, experiment, random_state(experiment))
    for name, given, message in [
        ("translate", ["--workdir", tmp_path, "one"], "this is a run of classification, not of translation"),
        ("predict", ["--workdir", trained, "a.png"], "this is a run of translation, not of classification"),
    ]:
        code, out, err = entry(name, *given)
        assert code == 2 and out == "" and message in err and err.count("\n") == 1


def test_evaluate_names_the_sentence_that_is_too_long(trained, entry, tmp_path):
    write(tmp_path / "test.en", ["one", "one " * 60, "two"])
    write(tmp_path / "test.de", ["eins", "eins " * 60, "zwei"])
    code, _, err = entry("evaluate", "--workdir", trained, f"--config.data.source=text:{tmp_path}")
    assert code == 2 and err.count("\n") == 1
    assert "test.en line 2 has" in err and "more than the model's limit of 48" in err
    code, _, err = entry("evaluate", "--workdir", trained, "--split", "tset")
    assert code == 2 and "did you mean 'test'" in err and err.count("\n") == 1
