import dataclasses
import time

import grain
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from attnjax.data.images import pipeline
from attnjax.data.images.augment import Augmentation
from attnjax.data.images.format import ImageFormat
from attnjax.data.images.pipeline import eval_batches, train_iterator
from attnjax.data.images.preparation import prepare
from attnjax.data.images.sources import open_source
from attnjax.data.shard import Shard
from attnjax.errors import UserError

EVERYTHING = Augmentation(
    crop="resized",
    flip=True,
    color_jitter=0.3,
    randaugment_layers=2,
    erase=0.5,
    mixup=0.8,
    cutmix=1.0,
    repeats=2,
)
FAST = Augmentation(crop="pad", pad=1, flip=True, erase=0.5, erase_fill="zero", mixup=0.8, cutmix=1.0)
PLAIN = Augmentation()


def image_format(source, **fields):
    values = {"image_size": (8, 8), "channels": source.channels, "std": (0.25,), "resize": "stretch"}
    return ImageFormat(**(values | fields))


def train(source, augmentation=PLAIN, *, fields=(), **options):
    return train_iterator(
        source, image_format(source, **dict(fields)), augmentation, **({"batch_size": 8, "seed": 0} | options)
    )


def evaluate(source, *, fields=(), **options):
    return list(eval_batches(source, image_format(source, **dict(fields)), **({"batch_size": 8} | options)))


def prepared(batch):
    """Returns what the compiled step makes of a batch: normalised by mean 0.5 and std 0.25."""
    image_format = ImageFormat((8, 8), batch["image"].shape[-1], std=(0.25,))
    return jax.tree.map(np.asarray, jax.jit(prepare, static_argnums=1)(batch, image_format))


# Training


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(8, 8), None])
@pytest.mark.parametrize("augmentation", [PLAIN, FAST, EVERYTHING], ids=["plain", "fast", "everything"])
def test_batch_form(memory_source, channels, size, augmentation):
    batch = next(train(memory_source(20, size, channels), augmentation))
    assert batch["image"].shape == (8, 8, 8, channels) and batch["image"].dtype == np.uint8
    batch = prepared(batch)
    assert batch["image"].shape == (8, 8, 8, channels) and batch["image"].dtype == np.float32
    assert batch.keys() - {"label_other", "label_weight"} == {"image", "label", "mask"}
    assert batch["label"].shape == (8,) and batch["label"].dtype == np.int32
    assert batch["mask"].all() and batch["mask"].dtype == bool
    assert ("label_other" in batch) == ("label_weight" in batch) == augmentation.mixes
    if augmentation.mixes:
        assert batch["label_other"].dtype == np.int32 and batch["label_weight"].dtype == np.float32
        assert ((batch["label_weight"] >= 0) & (batch["label_weight"] <= 1)).all()
        assert (batch["label"] != batch["label_other"]).all()


def test_plain_batches_are_the_images(memory_source):
    source = memory_source(20)
    batch = next(train(source))
    images = source.load(batch["label"])[0]
    np.testing.assert_array_equal(batch["image"], images)
    np.testing.assert_allclose(prepared(batch)["image"], (images / 255 - 0.5) / 0.25, atol=1e-6)


def test_epochs_are_permutations_without_a_gap(memory_source, take):
    labels = np.concatenate([batch["label"] for batch in take(train(memory_source(20)), 15)]).reshape(6, 20)
    for epoch in labels:
        assert sorted(epoch) == list(range(20))
    assert len({tuple(epoch) for epoch in labels}) == 6


def test_batch_larger_than_the_source(memory_source):
    batch = next(train(memory_source(3), batch_size=10))
    counts = np.bincount(batch["label"])
    assert counts.sum() == 10 and counts.min() >= 3


def test_seed_decides(memory_source, take, assert_same):
    source = memory_source(20)
    for left, right in zip(take(train(source, FAST), 4), take(train(source, FAST), 4), strict=True):
        assert_same(left, right)
    assert not np.array_equal(next(train(source, FAST, seed=1))["image"], next(train(source, FAST))["image"])


def test_augmentation_differs_between_epochs(memory_source, take):
    source = memory_source(8)
    epochs = take(train(source, Augmentation(crop="pad", pad=2)), 2)
    first, second = (epoch["image"][np.argsort(epoch["label"])] for epoch in epochs)
    assert (first != second).any(axis=(1, 2, 3)).sum() > 4


@pytest.mark.parametrize("augmentation", [FAST, EVERYTHING], ids=["fast", "everything"])
@pytest.mark.parametrize("count", [2, 4])
def test_any_number_of_processes_shares_the_same_batches(memory_source, augmentation, count, take, assert_same):
    source = memory_source(20, None, channels=3)
    whole = take(train(source, augmentation), 4)
    parts = [take(train(source, augmentation, shard=Shard(i, count)), 4) for i in range(count)]
    for step, batch in enumerate(whole):
        rows = [part[step] for part in parts]
        assert_same(batch, {name: np.concatenate([row[name] for row in rows]) for name in batch})


@pytest.mark.parametrize("augmentation", [PLAIN, FAST, EVERYTHING], ids=["plain", "fast", "everything"])
def test_resumed_is_uninterrupted(memory_source, augmentation, take, assert_same):
    source = memory_source(20)
    iterator = train(source, augmentation)
    take(iterator, 3)
    state = iterator.get_state()
    expected = take(iterator, 4)
    resumed = train(source, augmentation)
    resumed.set_state(state)
    for left, right in zip(expected, take(resumed, 4), strict=True):
        assert_same(left, right)


def test_resumed_from_an_orbax_checkpoint(memory_source, tmp_path, take, assert_same):
    source = memory_source(20)
    iterator = train(source, EVERYTHING)
    take(iterator, 3)
    with ocp.CheckpointManager(tmp_path) as manager:
        manager.save(3, args=ocp.args.Composite(data=grain.checkpoint.CheckpointSave(iterator)))
    resumed = train(source, EVERYTHING)
    with ocp.CheckpointManager(tmp_path) as manager:
        manager.restore(3, args=ocp.args.Composite(data=grain.checkpoint.CheckpointRestore(resumed)))
    assert_same(next(iterator), next(resumed))


@pytest.mark.parametrize("batch_size", [8, 12])
def test_repeats(memory_source, batch_size, take):
    augmentation = Augmentation(repeats=4, crop="pad", pad=3)
    batches = take(train(memory_source(30), augmentation, batch_size=batch_size), 4)
    for batch in batches:
        labels = batch["label"]
        assert (np.unique(labels, return_counts=True)[1] == 4).all()
        assert (labels[::2] != labels[1::2]).all()
    one = batches[0]["image"][batches[0]["label"] == batches[0]["label"][0]]
    assert len(np.unique(one.reshape(4, -1), axis=0)) > 1


@pytest.mark.parametrize("batch_size", [7, 10])
def test_repeats_of_an_image_may_be_in_two_batches(memory_source, batch_size, take):
    """As DeiT's sampler has it, so that any size of batch will do."""
    batches = take(train(memory_source(30), Augmentation(repeats=3), batch_size=batch_size), 90)
    labels = np.concatenate([batch["label"] for batch in batches])
    assert (np.bincount(labels) == 3 * batch_size).all()
    for batch in batches[:8]:
        pairs = batch["label"][: batch_size // 2 * 2].reshape(-1, 2)
        assert (pairs[:, 0] != pairs[:, 1]).all() and np.bincount(batch["label"]).max() == 3


@pytest.mark.parametrize("workers", [1, 2, 8])
@pytest.mark.parametrize("size", [(8, 8), None])
def test_any_number_of_threads_loads_the_same_batches(memory_source, workers, size, take, assert_same, monkeypatch):
    monkeypatch.setattr(pipeline, "_SMALLEST_PART", 1)
    source = memory_source(90, size, channels=3)
    options = {"batch_size": 64}
    alone, shared = (take(train(source, EVERYTHING, workers=count, **options), 3) for count in (1, workers))
    for left, right in zip(alone, shared, strict=True):
        assert_same(left, right)
    for left, right in zip(*(evaluate(source, workers=count, **options) for count in (1, workers)), strict=True):
        assert_same(left, right)


def test_prefetching_is_bounded_in_bytes(memory_source, monkeypatch):
    source, loaded = memory_source(32), []
    counting = dataclasses.replace(source, load=lambda indices: loaded.append(len(indices)) or source.load(indices))
    monkeypatch.setattr(pipeline, "_PREFETCH_BYTES", 3 * 32 * 8 * 8)
    iterator = train(counting, batch_size=32)
    next(iterator)
    time.sleep(0.5)
    assert sum(loaded) <= (1 + 3) * 32
    iterator.close()


@pytest.mark.parametrize("augmentation", [PLAIN, Augmentation(mixup=1.0), FAST, EVERYTHING])
def test_skipped_image_is_masked_and_reaches_nobody(memory_source, augmentation, take):
    corrupt = (0, 3, 4)
    source = memory_source(8, corrupt=corrupt)
    for batch in take(train(source, augmentation), 4):
        np.testing.assert_array_equal(batch["mask"], ~np.isin(batch["label"], corrupt))
        batch = prepared(batch)
        assert not batch["image"][~batch["mask"]].any()
        if augmentation.mixes:
            partner_gone = ~batch["mask"].reshape(-1, 2)[:, ::-1].reshape(-1)
            assert (batch["label_weight"][partner_gone] == 1).all()


def test_corrupt_image_stops_training_by_name(tmp_path, write_images, take):
    write_images(tmp_path, {f"train/{name}/{i}.png": (8, 8) for name in "ab" for i in range(2)})
    (tmp_path / "train/a/1.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"train/a/1\.png"):
        take(train(open_source(f"folder:{tmp_path}", "train")), 2)


# Evaluation


@pytest.mark.parametrize("batch_size", [1, 5, 8, 20, 64])
@pytest.mark.parametrize("size", [(8, 8), None])
def test_every_example_once(memory_source, batch_size, size):
    source = memory_source(20, size)
    batches = evaluate(source, batch_size=batch_size)
    assert all(batch["image"].shape == (batch_size, 8, 8, 1) for batch in batches)
    labels = np.concatenate([batch["label"][batch["mask"]] for batch in batches])
    assert labels.tolist() == list(range(20))
    assert not any(batch["label"][~batch["mask"]].any() for batch in batches)


def test_processes_share_evaluation(memory_source, assert_same):
    source = memory_source(9)
    parts = [evaluate(source, shard=Shard(i, 4)) for i in range(4)]
    assert {len(part) for part in parts} == {2}
    for step, batch in enumerate(evaluate(source)):
        rows = [part[step] for part in parts]
        assert_same(batch, {name: np.concatenate([row[name] for row in rows]) for name in batch})


def test_evaluation_can_be_repeated(memory_source, assert_same):
    source = memory_source(9)
    batches = eval_batches(source, image_format(source), batch_size=4)
    for left, right in zip(batches, batches, strict=True):
        assert_same(left, right)


def test_evaluation_masks_skipped_images(memory_source):
    batches = evaluate(memory_source(9, corrupt=(2,)))
    assert sum(batch["mask"].sum() for batch in batches) == 8
    assert not prepared(batches[0])["image"][2].any()


# Arguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 9, "shard": Shard(0, 2)}, "batch_size is 9: it should be a multiple of the 2 process"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"fields": {"image_size": (8,)}}, "image_size"),
        ({"fields": {"image_size": (8, 0)}}, "image_size"),
        ({"fields": {"image_size": (8, 8.5)}}, "image_size"),
        ({"fields": {"channels": 2}}, "channels is 2"),
        ({"fields": {"mean": (0.5, 0.5)}}, "mean has 2 values: it should have 1"),
        ({"fields": {"std": (0.0,)}}, "std is"),
        ({"fields": {"resize": "squash"}}, "unknown resize 'squash', Known: crop, stretch"),
        ({"fields": {"interpolation": "bicubik"}}, "did you mean 'bicubic'"),
    ],
)
def test_bad_arguments(memory_source, options, message):
    source = memory_source(20)
    with pytest.raises(UserError, match=message):
        train(source, **options)
    with pytest.raises(UserError, match=message):
        evaluate(source, **options)


@pytest.mark.parametrize(
    ("augmentation", "options", "message"),
    [
        (FAST, {"batch_size": 7}, "batch_size is 7: it should be even, as mixup and cutmix pair images"),
        (PLAIN, {"seed": -1}, "seed is -1"),
    ],
)
def test_bad_training_arguments(memory_source, augmentation, options, message):
    with pytest.raises(UserError, match=message):
        train(memory_source(20), augmentation, **options)


def test_bad_crop_fraction(memory_source):
    with pytest.raises(UserError, match="crop_fraction"):
        evaluate(memory_source(20), fields={"crop_fraction": 1.1})
