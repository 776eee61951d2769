import numpy as np
import pytest

from attnjax.data.images import batch_ops as ops
from attnjax.data.images.augment import Augmentation


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_pad_crop_is_slicing_the_padded_image(rng):
    images = rng.integers(0, 256, (6, 5, 7, 3), np.uint8)
    offsets = rng.integers(0, 5, (6, 2))
    cropped = ops.pad_crop(images, 2, offsets)
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))
    for row, (top, left) in enumerate(offsets):
        np.testing.assert_array_equal(cropped[row], padded[row, top : top + 5, left : left + 7])


def test_flip_mirrors_the_chosen_rows(rng):
    images = rng.integers(0, 256, (3, 4, 5, 1), np.uint8)
    flipped = np.asarray(ops.flip(images, np.array([True, False, True])))
    np.testing.assert_array_equal(flipped[1], images[1])
    np.testing.assert_array_equal(flipped[[0, 2]], images[[0, 2], :, ::-1])


# Erasing


def test_erase_boxes_have_the_given_area_and_ratio(rng):
    boxes = ops.draw_erase_boxes(rng, 2000, (64, 48), 0.25)
    erased = boxes[boxes[:, 2] > 0]
    assert 400 < len(erased) < 600
    top, left, height, width = erased.T
    assert (top >= 0).all() and (top + height <= 64).all() and (left >= 0).all() and (left + width <= 48).all()
    share = height * width / (64 * 48)
    assert share.min() > 0.02 * 0.8 and share.max() < 1 / 3 * 1.05
    assert (height / width).min() > 0.3 * 0.8 and (height / width).max() < 1 / 0.3 * 1.25
    assert not ops.draw_erase_boxes(rng, 100, (64, 48), 0.0).any()
    assert ops.draw_erase_boxes(rng, 100, (64, 64), 1.0)[:, 2].all()


def test_erase_changes_the_box_and_nothing_else(rng):
    images = np.full((3, 10, 12, 2), 7, np.float32)
    boxes = np.array([[1, 2, 3, 4], [0, 0, 0, 0], [5, 5, 5, 5]])
    erased = np.asarray(ops.erase(images, boxes))
    assert ((erased == 0).all(axis=-1).sum(axis=(1, 2)) == [12, 0, 25]).all()
    assert (erased[0, 1:4, 2:6] == 0).all()
    noise = rng.normal(size=images.shape).astype(np.float32)
    noisy = ops.erase(images, boxes, noise)
    np.testing.assert_array_equal(noisy, np.where(erased != 7, noise, 7))


# Mixing


def pairs(rng, count=400, size=(16, 12), **fields):
    weights, boxes = ops.draw_mix(rng, count, size, Augmentation(**fields))
    return weights.repeat(2), boxes.repeat(2, axis=0)


def test_mixup_weighs_images_and_labels_alike(rng):
    images, labels = rng.normal(size=(800, 16, 12, 1)).astype(np.float32), np.arange(800, dtype=np.int32)
    weights, boxes = pairs(rng, mixup=0.8)
    assert not boxes.any() and weights.std() > 0.1
    mixed, label_other, label_weight = ops.mix(images, labels, weights, boxes)
    assert mixed.dtype == label_weight.dtype == np.float32 and label_other.dtype == np.int32
    np.testing.assert_array_equal(label_other, np.arange(800) ^ 1)
    np.testing.assert_array_equal(label_weight, weights)
    share = label_weight[:, None, None, None]
    np.testing.assert_allclose(mixed, share * images + (1 - share) * images[label_other], atol=1e-6)


def test_cutmix_weight_is_the_area_that_is_left(rng):
    # Every pixel says which image it is from.
    labels = np.arange(800, dtype=np.int32)
    images = np.broadcast_to(labels[:, None, None, None], (800, 16, 12, 2)).astype(np.float32)
    mixed, label_other, label_weight = ops.mix(images, labels, *pairs(rng, cutmix=1.0))
    own = (mixed[..., 0] == labels[:, None, None]).mean(axis=(1, 2))
    other = (mixed[..., 0] == label_other[:, None, None]).mean(axis=(1, 2))
    np.testing.assert_allclose(own, label_weight, atol=1e-6)
    np.testing.assert_allclose(own + other, 1)
    assert label_weight.min() < 0.3 and label_weight.max() > 0.9


def test_switch_and_probability(rng):
    weights, boxes = pairs(rng, mixup=1.0, cutmix=1.0, mix_switch=0.25, mix_probability=0.5)
    mixed, cut = weights < 1, boxes[:, 2] > 0
    assert not (mixed & cut).any()
    assert 0.25 < mixed.mean() < 0.5 and 0.05 < cut.mean() < 0.2
    weights, boxes = pairs(rng, mixup=1.0, cutmix=1.0, mix_probability=0.0)
    assert (weights == 1).all() and not boxes.any()
