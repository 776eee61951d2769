import dataclasses

import jax
import numpy as np
import pytest

from attnjax import models, tasks
from attnjax.errors import Diverged, UserError
from attnjax.tasks.translation import TranslationTask
from attnjax.training import devices

RNN = dict(embedding=8, width=8, dropout=0.0)
MODELS = {
    "transformer": None,
    "rnn": models.fields("rnn", cell="gru", attention="none", **RNN),
    "rnn-dot": models.fields("rnn", cell="lstm", attention="dot", input_feeding=True, **RNN),
    "rnn-additive": models.fields("rnn", cell="gru", attention="additive", **RNN),
}
EXTRA = 6
SHORT = ["one", "two", "eleven", "seventy-eight", "ninety", "one two three", "eight", "a hundred"]
LONG = "one hundred and seventeen, two hundred and twenty-four"


@pytest.fixture(scope="module")
def vocabulary(make_config, tmp_path_factory):
    return for_training(make_config(), tmp_path_factory.mktemp("none")).vocabulary


def for_training(config, workdir):
    return tasks.for_training(config, devices.make(), workdir)


def from_run(config, workdir):
    return tasks.from_run(config, devices.make(), workdir)


def from_vocabulary(config, vocabulary):
    return TranslationTask.with_vocabulary(config, devices.make(), vocabulary)


# Translating


@pytest.fixture(scope="module", params=MODELS)
def translator(request, make_config, vocabulary):
    """A model of random weights, and its translations of SHORT and LONG in one batch."""
    config = make_config(MODELS[request.param])
    config.decoding.update(beam_size=3, length_penalty="none", extra_length=EXTRA)
    task = from_vocabulary(config, vocabulary)
    shapes, _ = jax.eval_shape(task.objective.init, jax.random.key(0), task.example)
    rng = np.random.default_rng(2)
    params = jax.tree.map(lambda x: (0.5 * rng.normal(size=x.shape)).astype(np.float32), shapes)
    # So that some translations end early and others at their limit.
    if request.param == "transformer":
        params["target_embedding"]["embedding"][2] *= 1.5
    else:
        params["output"]["bias"][2] += 2 if request.param == "rnn-additive" else 1
    variables = params, {}
    return task, variables, task.translate(variables, [*SHORT, LONG], n_best=3)


def assert_same(one, other):
    for a, b in zip(one, other, strict=True):
        for left, right in zip(a, b, strict=True):
            assert (left.text, left.subwords) == (right.text, right.subwords)
            np.testing.assert_allclose(left.score, right.score, atol=1e-4)
            np.testing.assert_allclose(left.log_probs, right.log_probs, atol=1e-4)


def test_company_does_not_change_a_translation(translator):
    """Not the others' order, nor their number and length: LONG makes rows twice as wide."""
    task, variables, found = translator
    assert all(len(ids) <= 16 for ids in task.encode(SHORT)) and len(task.encode([LONG])[0]) > 16
    order = np.random.default_rng(0).permutation(9)
    lines = [*SHORT, LONG]
    shuffled = task.translate(variables, [lines[i] for i in order], n_best=3)
    assert_same(shuffled, [found[i] for i in order])
    assert_same(task.translate(variables, SHORT, n_best=3), found[:8])
    for i in (0, 6):
        assert_same(task.translate(variables, SHORT[i : i + 1], n_best=3), found[i : i + 1])
    smaller = dataclasses.replace(task, searcher=dataclasses.replace(task.searcher, eval_tokens=128))  # two batches
    assert_same(smaller.translate(variables, SHORT[:3] * 5, n_best=3), found[:3] * 5)
    assert len({candidates[0].subwords for candidates in found}) > 3  # or the rest would say little


def test_candidates_are_distinct_and_sorted_and_their_scores_are_sums(translator):
    _, _, found = translator
    for candidates in found:
        assert len({candidate.subwords for candidate in candidates}) == len(candidates) == 3
        scores = [candidate.score for candidate in candidates]
        assert scores == sorted(scores, reverse=True) and scores[0] > scores[-1]
        for candidate in candidates:
            assert candidate.subwords[-1] == "</s>" and len(candidate.subwords) == len(candidate.log_probs)
            assert max(candidate.log_probs) <= 0
            np.testing.assert_allclose(sum(candidate.log_probs), candidate.score, rtol=1e-5)


def test_a_translation_is_at_most_so_much_longer_than_its_line(translator):
    task, _, found = translator
    lengths = [len(ids) for ids in task.encode([*SHORT, LONG])]
    room = [
        length + EXTRA - len(candidate.subwords)
        for length, candidates in zip(lengths, found, strict=True)
        for candidate in candidates
    ]
    assert min(room) == 0 and max(room) > 0


def test_the_text_is_that_of_the_subwords(translator):
    task, _, found = translator
    for candidates in found:
        for text, _, subwords, _ in candidates:
            assert text == task.vocabulary.target.decode(list(subwords[:-1]))


def test_lines_are_truncated_to_the_models_limit(make_config, vocabulary):
    task = from_vocabulary(make_config(), vocabulary)
    assert task.limit == 64
    (ids,) = task.encode([LONG * 10])
    assert len(ids) > 64 and ids[-1] == 2
    assert task.truncate(ids) == [*ids[:63], 2]
    for length in (1, 2, 63, 64):
        whole = [*ids[: length - 1], 2]
        assert task.truncate(whole) == whole
    assert from_vocabulary(make_config(MODELS["rnn"]), vocabulary).limit == 1024


def test_a_search_that_does_not_fit_into_memory_is_not_begun(translator, monkeypatch):
    task, variables, _ = translator
    with pytest.raises(UserError, match=r"beam_size=100000000 needs about .+ GiB for 8 rows, and .+ GiB are free"):
        task.translate(variables, SHORT[:1], beam_size=100_000_000)
    monkeypatch.setattr("attnjax.tasks.search.free_bytes", lambda: None)  # unknown
    assert task.translate(variables, SHORT[:1], beam_size=1)


def test_an_output_always_exists_unless_the_weights_are_broken(translator):
    task, variables, _ = translator
    (found,) = task.translate(variables, SHORT[:1], beam_size=2, no_repeat_ngram=1, min_length=60, extra_length=60)
    assert found[0].subwords[-1] == "</s>"
    broken = jax.tree.map(lambda x: np.full_like(x, np.nan), variables)
    with pytest.raises(Diverged, match="probabilities are NaN or 0 for all outputs"):
        task.translate(broken, SHORT[:1], beam_size=2)


# Training


@pytest.mark.parametrize(
    "fields", [{}, {"method": "pack", "max_tokens": 256}, {"method": "bucket", "shapes": 1}], ids=str
)
@pytest.mark.parametrize("accumulate", [1, 3])
def test_an_epoch_has_as_many_steps_as_batches(make_config, vocabulary, numbers, fields, accumulate):
    config = make_config()
    config.data.batching.update(fields)
    config.accumulate, config.data.batching.max_tokens = accumulate, 256 * (3 if accumulate > 1 else 1)
    task = for_training(config, numbers / "nowhere")
    batches, count, seen = task.batches(), 0, 0
    while batches.get_state()["epoch"] == 0:
        batch = next(batches)
        assert len(batch["mask"]) % (8 * accumulate) == 0
        count, seen = count + 1, seen + (batch["target"] == 1).sum()
    batches.close()
    assert task.steps_per_epoch == count > 1 and seen == len(task.data.train) == 250


# The vocabulary


def pieces(vocabulary):
    return [vocabulary.source.id_to_piece(i) for i in range(vocabulary.source.get_piece_size())]


def test_the_vocabulary_is_the_run_folders_else_that_of_the_run_before_else_learnt(make_config, tmp_path):
    old, new, none = (tmp_path / name for name in ("old", "new", "none"))
    config = make_config()
    learnt = for_training(config, none)
    assert not none.exists() and len(pieces(learnt.vocabulary)) == 70
    learnt.save(new)

    config.data.vocabulary.size = 60
    other = for_training(config, none)
    assert len(pieces(other.vocabulary)) == 60
    other.save(old)

    config.data.vocabulary.size = 50
    config.init_from = str(old)
    assert pieces(for_training(config, none).vocabulary) == pieces(other.vocabulary)
    assert pieces(for_training(config, new).vocabulary) == pieces(learnt.vocabulary)
    assert pieces(from_run(config, new).vocabulary) == pieces(learnt.vocabulary)
    config.init_from = str(tmp_path / "weights.npz")
    assert len(pieces(for_training(config, none).vocabulary)) == 50


def test_separate_vocabularies_have_their_own_sizes(make_config, tmp_path):
    config = make_config()
    config.model.tie = "decoder"
    config.data.vocabulary.joint = False
    task = for_training(config, tmp_path)
    task.save(tmp_path)
    again = from_run(config, tmp_path)
    assert not again.vocabulary.joint and pieces(again.vocabulary) == pieces(task.vocabulary)
    model = again.objective.model
    assert (model.source_vocabulary, model.target_vocabulary) == (70, 70)
    assert again.vocabulary.target.decode(again.vocabulary.target.encode("zwölf")) == "zwölf"
    assert "vocabulary  70 and 70 subwords, bpe" in task.header
