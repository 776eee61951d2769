"""Damage to every file of a run folder: each entry point gives the result of the undamaged folder, or one line."""

import contextlib
import json
import os
import random
import shutil
import signal
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from attnjax import config as config_lib
from attnjax import models
from attnjax.reports import figures
from attnjax.runs import loop
from attnjax.runs.folder import open_run
from attnjax.tasks.search import Candidate
from attnjax.tasks.translation import TranslationTask

SECONDS = 30  # that a case may take
REPEATS = 2  # of the kinds of damage that are drawn at random, in the thorough tests


def classifier():
    config = config_lib.classification()
    config.model = models.fields("mlp", widths=(4,))
    config.data.source, config.data.train, config.data.validation = "tfds:digits", "train[:5%]", "train[5%:8%]"
    config.data.image_size, config.data.channels = (4, 4), 1
    config.steps, config.log_every, config.eval_every = 6, 2, 3
    config.batch_size, config.eval_batch_size, config.keep_checkpoints = 8, 360, 2
    return config


def translator(folder):
    for language, words in (("en", ("one two", "two one", "one one")), ("de", ("eins zwei", "zwei eins", "eins eins"))):
        for split in ("train", "test"):
            (folder / f"{split}.{language}").write_text("".join(f"{line}\n" for line in words))
    config = config_lib.translation()
    small = dict(width=8, encoder_depth=1, decoder_depth=1, num_heads=2, mlp_dim=8, max_length=16)
    config.model = models.fields("transformer", **small)
    config.data.source, config.data.validation = f"text:{folder}", ""
    config.data.vocabulary.size, config.data.batching.max_length, config.steps = 20, 16, 2
    return config


@pytest.fixture(scope="module")
def classified(tmp_path_factory, quick):
    """A run folder of a classifier, with checkpoints 3 and 6, that was evaluated; and an image."""
    folder = tmp_path_factory.mktemp("fuzz")
    loop.train(classifier(), folder / "run")
    Image.new("L", (4, 4), 99).save(folder / "image.png")
    return folder / "run"


@pytest.fixture(scope="module")
def translated(tmp_path_factory, quick):
    folder = tmp_path_factory.mktemp("fuzz")
    loop.train(translator(folder), folder / "run")
    return folder / "run"


@pytest.fixture
def stubs(monkeypatch):
    """Replaces a search, which takes long to compile, by a digest of what it is given; keeps the plotted numbers."""

    def translate(task, variables, lines, **decoding):
        digest = sum(float(np.abs(leaf).sum()) for leaf in jax.tree.leaves(variables))
        subwords = task.vocabulary.target.get_piece_size(), task.encode(lines)
        return [[Candidate(f"{digest} {subwords}", 0.0, (), ())] for _ in lines]

    plotted = []

    def save(path, figure, *_, **__):
        plotted.append([line.get_xydata().tolist() for axis in figure.axes for line in axis.lines])

    monkeypatch.setattr(TranslationTask, "translate", translate)
    monkeypatch.setattr(figures, "save", save)
    return plotted


# Damage


def flip(data, generator):
    data = bytearray(data)
    if data:
        place = generator.randrange(8 * len(data))
        data[place // 8] ^= 1 << place % 8
    return bytes(data)


def zeros(data, generator):
    start = generator.randrange(max(1, len(data) - 512))
    return data[:start] + bytes(len(data[start : start + 512])) + data[start + 512 :]


CONTENTS = {
    "emptied": lambda data, _: b"",
    "cut": lambda data, generator: data[: generator.randrange(max(1, len(data)))],
    "flipped": flip,
    "zeros": zeros,
}
KINDS = ("deleted", "folder", "other", *CONTENTS)


def damage(path, kind, other, generator):
    """Damages a file in the way that KINDS names; "other": it gets the content of another file."""
    if kind in CONTENTS:
        path.write_bytes(CONTENTS[kind](path.read_bytes(), generator))
    elif kind == "other":
        shutil.copyfile(other, path)
    else:
        path.unlink()
        if kind == "folder":
            path.mkdir()


# Entry points


def trained(workdir, out, plotted):
    run = open_run(workdir, "latest")
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    timed = ("seconds", "_per_second", "data_wait", "mfu", "peak_memory_gib", "crc32")
    return [run.step, [np.asarray(leaf).tolist() for leaf in jax.tree.leaves(run.params)]], [
        {name: value for name, value in row.items() if not name.endswith(timed)} for row in rows
    ]


# Name -> arguments for a run folder, and what it found there: (run folder, stdout, plotted) -> something to compare.
ENTRIES = {
    "evaluate": (lambda run: ["--workdir", run], lambda run, out, _: out),
    "predict": (lambda run: ["--workdir", run, run.parent / "image.png"], lambda run, out, _: out),
    "translate": (lambda run: ["--workdir", run, "one two"], lambda run, out, _: out),
    "train": (lambda run: ["--workdir", run], trained),
    "report": (lambda run: [run], lambda run, out, _: (run / "report.csv").read_text()),
    "figures": (lambda run: ["--workdir", run], lambda run, out, plotted: plotted[-1]),
}


@contextlib.contextmanager
def limit():
    def late(number, frame):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


class Fuzz:
    """Damages copies of a run folder. tally: what happened -> number of cases."""

    def __init__(self, run, entry, plotted, entries):
        self.run, self.entry, self.plotted = run, entry, plotted
        self.tally = Counter()
        self.expected = {name: self._call(name, self._copy())[1] for name in entries}
        self.files = sorted(path.relative_to(run) for path in run.rglob("*") if path.is_file())

    def _copy(self):
        shutil.rmtree(work := self.run.parent / "damaged", ignore_errors=True)
        return Path(shutil.copytree(self.run, work))

    def _call(self, name, run):
        """Returns the output, and what the entry point found; None if it refused."""
        arguments, found = ENTRIES[name]
        with limit():
            code, out, err = self.entry(name, *arguments(run))
        assert code in (0, 2), (code, err)
        assert "Traceback" not in out + err, err
        assert code == 0 or (err.count("\n") == 1 and err.startswith("error: ")), err
        return out + err, None if code else found(run, out, self.plotted)

    def case(self, name, file, kind, generator):
        """Raises AssertionError if the entry point neither finds what it should nor names the file."""
        run, others = self._copy(), [other for other in self.files if other != file]
        damage(run / file, kind, self.run / generator.choice(others), generator)
        said, found = self._call(name, run)
        if json.dumps(found) == json.dumps(self.expected[name]):
            self.tally["gave the undamaged result"] += 1
            return
        step = file.parts[1] if file.parts[0] == "checkpoints" else None
        names = (f"checkpoint {step} ", f"({step}: ") if step else (file.name,)
        assert any(name in said for name in names), said
        self.tally["refused in one line" if found is None else "left out and named"] += 1


def run_cases(fuzz, cases):
    """Runs cases (entry point, file, kind, seed) and shows all that fail."""
    failures = []
    for name, file, kind, seed in cases:
        try:
            fuzz.case(name, file, kind, random.Random(f"{name} {file} {kind} {seed}"))
        except Exception as error:
            failures.append(f"{name} {file} {kind} {seed}: {type(error).__name__} {str(error)[-600:]}")
            print(failures[-1], flush=True)
    print(f"\n{len(cases)} cases: {dict(fuzz.tally)}")
    assert not failures, f"{len(failures)} of {len(cases)}:\n" + "\n".join(failures[:40])


def all_cases(fuzz, entries, repeats, sample=None):
    """Returns all cases, or a sample of them, whose size ATTNJAX_FUZZ_SAMPLE overrides."""
    counts = {kind: repeats if kind in (*CONTENTS, "other") and kind != "emptied" else 1 for kind in KINDS}
    cases = [(e, f, kind, seed) for e in entries for f in fuzz.files for kind in KINDS for seed in range(counts[kind])]
    sample = int(os.environ.get("ATTNJAX_FUZZ_SAMPLE", sample or len(cases)))
    return random.Random(0).sample(cases, min(sample, len(cases)))


CLASSIFIER = ("evaluate", "predict", "train", "report", "figures")
TRANSLATOR = ("evaluate", "translate", "train")


@pytest.fixture
def fuzz_classifier(classified, entry, stubs):
    entry("evaluate", "--workdir", classified)
    return Fuzz(classified, entry, stubs, CLASSIFIER)


@pytest.mark.thorough
def test_every_damage_to_a_classifiers_run(fuzz_classifier):
    run_cases(fuzz_classifier, all_cases(fuzz_classifier, CLASSIFIER, REPEATS))


@pytest.mark.thorough
def test_every_damage_to_a_translators_run(translated, entry, stubs):
    fuzz = Fuzz(translated, entry, stubs, TRANSLATOR)
    run_cases(fuzz, all_cases(fuzz, TRANSLATOR, REPEATS))


def test_a_sample_of_damages(fuzz_classifier):
    run_cases(fuzz_classifier, all_cases(fuzz_classifier, CLASSIFIER, 1, sample=12))
