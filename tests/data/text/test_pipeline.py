import grain
import numpy as np
import orbax.checkpoint as ocp
import pytest

from attnjax.data.shard import Shard
from attnjax.data.text.batching import Batching, _best_widths, possible_shapes, train_layout
from attnjax.data.text.corpus import encode_pairs, training_corpus
from attnjax.data.text.pipeline import eval_batches, train_iterator
from attnjax.data.text.sources import PairSource, open_pairs
from attnjax.data.text.vocabulary import Sampling, decode, train_vocabulary
from attnjax.errors import UserError

BUCKET = Batching(max_tokens=256, max_length=32, shapes=4, row_multiple=4)
PACK = Batching("pack", max_tokens=256, max_length=32, row_multiple=4)
METHODS = pytest.mark.parametrize("batching", [BUCKET, PACK], ids=["bucket", "pack"])


def make_source(count=300, longest=9):
    rng = np.random.default_rng(0)
    words = ["a", "ab", "abc", "bca", "cabba", "bb"]
    sides = [[" ".join([*rng.choice(words, rng.integers(0, longest)), str(i)]) for i in range(count)] for _ in range(2)]
    return PairSource(("xx", "yy"), *sides, str)


SOURCE = make_source()
VOCABULARY = train_vocabulary(SOURCE.source, SOURCE.target, size=60)
PAIRS = encode_pairs(SOURCE, VOCABULARY)


def same(epoch):
    return PAIRS


def sampled():
    return training_corpus(SOURCE, VOCABULARY, Sampling(0.3), seed=5)


def train(batching=BUCKET, corpus=same, seed=0, **options):
    return train_iterator(corpus, batching, seed=seed, **options)


def texts(batch, side):
    """Returns the text of every sentence in a batch, row by row, and checks the layout of each."""
    found = []
    for row, ids in enumerate(batch[side]):
        segments = batch[f"{side}_segments"][row] if f"{side}_segments" in batch else (ids != 0).astype(int)
        np.testing.assert_array_equal(segments == 0, ids == 0)
        for segment in range(1, segments.max() + 1):
            where = np.flatnonzero(segments == segment)
            assert (np.diff(where) == 1).all()
            if f"{side}_positions" in batch:
                np.testing.assert_array_equal(batch[f"{side}_positions"][row][where], np.arange(len(where)))
            sentence = ids[where]
            assert sentence[-1] == 2 and (sentence == 2).sum() == 1
            assert (sentence == 1).sum() == (side == "target") and (side == "source" or sentence[0] == 1)
            found.append(sentence)
    return decode(VOCABULARY.source, [row[1:] if side == "target" else row for row in found])


# Training


@METHODS
@pytest.mark.parametrize("corpus", [same, sampled()], ids=["same", "sampled"])
def test_every_pair_once_an_epoch(batching, corpus):
    iterator, everything = train(batching, corpus), sorted(zip(SOURCE.source, SOURCE.target, strict=True))
    shapes, epochs, order = set(possible_shapes(corpus, batching)), {}, []
    while iterator.get_state()["epoch"] < 3:
        epoch = iterator.get_state()["epoch"]
        batch = next(iterator)
        pairs = list(zip(texts(batch, "source"), texts(batch, "target"), strict=True))
        epochs.setdefault(epoch, []).extend(pairs)
        assert batch["source"].dtype == batch["target"].dtype == np.int32
        assert (*batch["source"].shape, batch["target"].shape[1]) in shapes
        np.testing.assert_array_equal(batch["mask"], batch["source"].any(axis=1))
        np.testing.assert_array_equal(batch["mask"], batch["target"].any(axis=1))
    for pairs in epochs.values():
        assert sorted(pairs) == everything
        order.append(tuple(pairs))
    assert len(set(order)) == 3


@METHODS
def test_budget_and_number_of_shapes(batching):
    shapes = possible_shapes(same, batching)
    assert len(shapes) <= (1 if batching.method == "pack" else batching.shapes)
    for rows, source, target in shapes:
        assert rows * source <= batching.max_tokens and rows % batching.row_multiple == 0
        assert target == source + 1
        assert (rows + batching.row_multiple) * source > batching.max_tokens


@METHODS
def test_layout_is_what_comes(batching, take):
    layout = train_layout(same, batching, seed=0)
    batches = take(train(batching), layout.batches)
    ids = sum(batch["source"].size + batch["target"].size for batch in batches)
    pads = sum((batch["source"] == 0).sum() + (batch["target"] == 0).sum() for batch in batches)
    assert layout.padding == pytest.approx(pads / ids) and layout.pairs == len(SOURCE) and layout.dropped == 0
    assert layout.shapes.keys() == {(*batch["source"].shape, batch["target"].shape[1]) for batch in batches}
    assert sum(not batch["mask"].all() for batch in batches) <= 1


def test_packing_fills_better():
    padding = [train_layout(same, batching, seed=0).padding for batching in (BUCKET, PACK)]
    assert padding[1] < 0.15 < padding[0] < 0.35


def test_widths_pad_least():
    lengths = np.random.default_rng(0).integers(1, 9, 40)

    def positions(widths):
        return np.array(widths)[np.searchsorted(widths, lengths)].sum()

    for count in (1, 2, 3):
        best = _best_widths(lengths, count)
        others = [sorted({*chosen, 8}) for chosen in np.ndindex(*[9] * (count - 1))]
        assert len(best) == count and positions(best) == min(map(positions, others))
    assert _best_widths(lengths, 20) == list(range(1, 9))


@METHODS
def test_seed_decides(batching, assert_same):
    assert_same(next(train(batching)), next(train(batching)))
    first, other = next(train(batching)), next(train(batching, seed=1))
    assert first["source"].shape != other["source"].shape or (first["source"] != other["source"]).any()


@METHODS
@pytest.mark.parametrize("make", [lambda: same, sampled], ids=["same", "sampled"])
@pytest.mark.parametrize("after", [0, 3, 40])
def test_resumed_is_uninterrupted(batching, make, after, take, assert_same):
    iterator = train(batching, make())
    take(iterator, after)
    state = iterator.get_state()
    expected = take(iterator, 30)
    resumed = train(batching, make())
    resumed.set_state(state)
    for left, right in zip(expected, take(resumed, 30), strict=True):
        assert_same(left, right)


def test_resumed_from_an_orbax_checkpoint(tmp_path, take, assert_same):
    iterator = train(corpus=sampled())
    take(iterator, 25)
    with ocp.CheckpointManager(tmp_path) as manager:
        manager.save(3, args=ocp.args.Composite(data=grain.checkpoint.CheckpointSave(iterator)))
    resumed = train(corpus=sampled())
    with ocp.CheckpointManager(tmp_path) as manager:
        manager.restore(3, args=ocp.args.Composite(data=grain.checkpoint.CheckpointRestore(resumed)))
    assert_same(next(iterator), next(resumed))


@METHODS
@pytest.mark.parametrize("count", [2, 4])
def test_any_number_of_processes_shares_the_same_batches(batching, count, take, assert_same):
    parts = [take(train(batching, sampled(), shard=Shard(i, count)), 25) for i in range(count)]
    for step, batch in enumerate(take(train(batching, sampled()), 25)):
        rows = [part[step] for part in parts]
        assert_same(batch, {name: np.concatenate([row[name] for row in rows]) for name in batch})


@METHODS
def test_long_pairs_are_dropped_and_counted(batching, caplog):
    short = Batching(batching.method, max_tokens=64, max_length=9, row_multiple=4)
    expected = int((PAIRS.lengths > 9).sum())
    layout = train_layout(same, short, seed=0)
    assert 0 < expected == layout.dropped == len(SOURCE) - layout.pairs
    train(short)
    assert f"left out {expected} of 300 pairs, longer than max_length 9" in caplog.text


def test_corpus_samples_only_if_asked():
    plain = training_corpus(SOURCE, VOCABULARY, Sampling(), seed=0)
    assert plain(0) is plain(1)
    drawn = training_corpus(SOURCE, VOCABULARY, Sampling(0.2), seed=0)
    assert drawn(0).source.tokens.tolist() != drawn(1).source.tokens.tolist()


# Evaluation


@pytest.mark.parametrize("options", [{}, {"max_tokens": 40, "row_multiple": 1}, {"shapes": 1}, {"shapes": 3}])
def test_evaluation_has_every_pair_once(options, assert_same):
    options = {"max_tokens": 256, "row_multiple": 4} | options
    batches = eval_batches(PAIRS, **options)
    places, lengths = [], []
    for batch in batches:
        places += batch["index"][batch["mask"]].tolist()
        lengths.append(batch["source"].shape[1])
        assert (batch["index"][~batch["mask"]] == -1).all() and batch["index"].dtype == np.int32
        rows = [SOURCE.source[place] for place in batch["index"][batch["mask"]]]
        assert texts(batch, "source") == rows
        assert texts(batch, "target") == [SOURCE.target[place] for place in batch["index"][batch["mask"]]]
    assert sorted(places) == list(range(len(SOURCE))) and lengths == sorted(lengths)
    assert len({batch["source"].shape for batch in batches}) <= options.get("shapes", 8)
    for left, right in zip(batches, batches, strict=True):
        assert_same(left, right)


def test_evaluation_keeps_pairs_beyond_the_budget():
    batches = list(eval_batches(PAIRS, max_tokens=4, row_multiple=2))
    assert sum(batch["mask"].sum() for batch in batches) == len(SOURCE)
    assert all(len(batch["mask"]) == 2 for batch in batches)


def test_processes_share_evaluation(assert_same):
    options = {"max_tokens": 256, "row_multiple": 4}
    parts = [list(eval_batches(PAIRS, shard=Shard(i, 4), **options)) for i in range(4)]
    for step, batch in enumerate(eval_batches(PAIRS, **options)):
        rows = [part[step] for part in parts]
        assert_same(batch, {name: np.concatenate([row[name] for row in rows]) for name in batch})


# Arguments


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "sort"}, "unknown batching method 'sort'"),
        ({"max_tokens": 100}, "max_tokens is 100: it should be 1024 or more"),
        ({"shapes": 0}, "shapes is 0"),
        ({"row_multiple": 0}, "row_multiple is 0"),
    ],
)
def test_bad_batching(fields, message):
    with pytest.raises(UserError, match=message):
        Batching(**fields)


def test_bad_arguments():
    with pytest.raises(UserError, match="all of the 300 pairs are longer than max_length 1"):
        train(Batching(max_length=1))
    with pytest.raises(UserError, match=r"multiple of the 3 process\(es\)"):
        train(shard=Shard(0, 3))
    with pytest.raises(UserError, match="seed is -1"):
        train(seed=-1)
    with pytest.raises(UserError, match=r"multiple of the 3 process\(es\)"):
        eval_batches(PAIRS, shard=Shard(0, 3))
    with pytest.raises(UserError, match="max_tokens is 0"):
        eval_batches(PAIRS, max_tokens=0)


# Real data


def test_multi30k(real_data):
    source = open_pairs(f"text:{real_data}/multi30k/data/task1/raw", "val", source="en", target="de")
    pairs = encode_pairs(source, train_vocabulary(source.source, source.target, size=2000))
    padding = {
        method: train_layout(lambda epoch: pairs, Batching(method), seed=0).padding for method in ("bucket", "pack")
    }
    assert padding["bucket"] < 0.35 and padding["pack"] < 0.2
