import dataclasses

import numpy as np
import pytest
from PIL import Image

from attnjax.data.images import augment as ops
from attnjax.data.images.augment import Augmentation
from attnjax.errors import UserError


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def photo(height=20, width=30, channels=3):
    ramp = np.linspace(0, 255, height * width * channels).reshape(height, width, channels)
    return ramp.astype(np.uint8)


# Augmentation


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"flips": True}, "unknown augmentation 'flips': did you mean 'flip'"),
        ({"crop": "padd"}, "unknown augmentation crop 'padd': did you mean 'pad'\\? Known: none, pad, resized"),
        ({"erase_fill": "black"}, "Known: noise, zero"),
        ({"erase": 1.5}, "erase is 1.5: it should be a probability"),
        ({"mixup": -1}, "mixup is -1"),
        ({"repeats": 0}, "repeats is 0"),
        ({"pad": 0}, "pad is 0"),
        ({"randaugment_magnitude": 11}, "from 0 to 10"),
        ({"scale": (0.5, 0.2)}, "scale"),
        ({"ratio": (0.0, 1.0)}, "ratio"),
    ],
)
def test_bad_augmentation(values, message):
    with pytest.raises(UserError, match=message):
        Augmentation(**values)


def test_augmentation_is_off_by_default_and_replaceable():
    assert not Augmentation().mixes
    assert dataclasses.replace(Augmentation(), mixup=0.2).mixes


# Geometry


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("resize", ["stretch", "crop"])
@pytest.mark.parametrize("size", [(8, 8), (7, 13), (40, 50)])
def test_fit_gives_the_size(channels, resize, size):
    fitted = ops.fit(photo(channels=channels), size, resize, "bicubic")
    assert fitted.shape == (*size, channels) and fitted.dtype == np.uint8


def test_fit_crop_takes_the_centre():
    image = np.zeros((10, 20, 1), np.uint8)
    image[:, 5:15] = 255
    assert (ops.fit(image, (10, 10), "crop") == 255).all()
    assert ops.fit(image, (10, 10), "stretch").min() == 0


def test_fit_keeps_an_image_of_the_size():
    image = photo()
    assert ops.fit(image, (20, 30)) is image


def test_fit_crop_fraction_shows_less():
    image = np.zeros((100, 100, 1), np.uint8)
    image[10:90, 10:90] = 255
    assert (ops.fit(image, (20, 20), "crop", crop_fraction=0.75) == 255).all()
    assert ops.fit(image, (20, 20), "crop").min() == 0


def test_resized_crop_boxes_stay_inside_and_keep_scale_and_ratio(rng):
    for height, width in [(20, 30), (64, 64), (7, 90)]:
        for _ in range(100):
            top, left, h, w = ops._resized_crop_box((height, width), rng, (0.2, 0.9), (3 / 4, 4 / 3))
            assert 0 <= top <= height - h and 0 <= left <= width - w
            if (height, width) == (64, 64):  # a thin image may need the fallback
                assert 0.2 * 0.9 <= h * w / 64**2 <= 0.9 * 1.1
                assert 0.7 <= w / h <= 1.43


def test_resized_crop_of_everything_is_a_resize(rng):
    image = photo(24, 24)
    whole = ops.random_resized_crop(image, rng, (12, 12), (1.0, 1.0), (1.0, 1.0))
    np.testing.assert_array_equal(whole, ops.fit(image, (12, 12)))


def test_pad_crop_is_slicing_the_padded_image(rng):
    images = rng.integers(0, 256, (6, 5, 7, 3), np.uint8)
    offsets = rng.integers(0, 5, (6, 2))
    cropped = ops.pad_crop(images, 2, offsets)
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))
    for row, (top, left) in enumerate(offsets):
        np.testing.assert_array_equal(cropped[row], padded[row, top : top + 5, left : left + 7])


def test_flip_mirrors_the_chosen_rows(rng):
    images = rng.integers(0, 256, (3, 4, 5, 1), np.uint8)
    flipped = ops.flip(images, np.array([True, False, True]))
    np.testing.assert_array_equal(flipped[1], images[1])
    np.testing.assert_array_equal(flipped[[0, 2]], images[[0, 2], :, ::-1])


# Colours


@pytest.mark.parametrize("name", list(ops.OPERATIONS))
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_operation_keeps_form_and_is_deterministic(name, channels, level):
    picture = ops.to_pil(photo(channels=channels))
    once, twice = (ops.apply_operation(picture, name, level, np.random.default_rng(3), (5,)) for _ in range(2))
    assert once.mode == picture.mode and once.size == picture.size
    assert once.tobytes() == twice.tobytes()


@pytest.mark.parametrize("name", sorted(set(ops.OPERATIONS) - {"auto_contrast"}))
def test_operation_changes_the_picture(name, rng):
    # The ramp already spans 0..255, which is what auto_contrast would do.
    picture = ops.to_pil(rng.integers(0, 256, (20, 30, 3), np.uint8))
    assert ops.apply_operation(picture, name, 0.9, rng).tobytes() != picture.tobytes()


@pytest.mark.parametrize("name", ["rotate", "shear_x", "color", "brightness", "translate_y", "solarize"])
def test_level_zero_changes_nothing(name, rng):
    picture = ops.to_pil(photo())
    np.testing.assert_array_equal(ops.apply_operation(picture, name, 0.0, rng), picture)


def test_operations_by_hand(rng):
    grey = Image.fromarray(np.array([[0, 100, 127, 128, 200, 255]], np.uint8))

    def values(name, level):
        return np.asarray(ops.apply_operation(grey, name, level, rng))[0].tolist()

    assert values("solarize_add", 1.0) == [110, 210, 237, 128, 200, 255]
    assert values("solarize", 0.5) == [0, 100, 127, 127, 55, 0]
    assert values("posterize", 0.5) == [0, 64, 64, 128, 192, 192]
    assert values("posterize", 1.0) == [0] * 6
    assert values("invert", 1.0) == [255, 155, 128, 127, 55, 0]


def test_moved_in_pixels_have_the_fill_colour(rng):
    picture = ops.to_pil(photo(20, 40))
    moved = np.asarray(ops.apply_operation(picture, "translate_x", 1.0, rng, (1, 2, 3), "nearest"))
    assert (moved == (1, 2, 3)).all(axis=-1).sum() == 20 * 0.45 * 40


@pytest.mark.parametrize("channels", [1, 3])
def test_randaugment(channels):
    image = photo(channels=channels)
    results = [ops.randaugment(image, np.random.default_rng(seed), layers=3) for seed in (1, 1, *range(2, 12))]
    assert all(result.shape == image.shape and result.dtype == np.uint8 for result in results)
    np.testing.assert_array_equal(results[0], results[1])
    assert sum(not np.array_equal(result, image) for result in results) > 5
    np.testing.assert_array_equal(ops.randaugment(image, np.random.default_rng(0), layers=0), image)


@pytest.mark.parametrize("channels", [1, 3])
def test_color_jitter(channels):
    image = photo(channels=channels)
    once, twice = (ops.color_jitter(image, np.random.default_rng(1), 0.4) for _ in range(2))
    np.testing.assert_array_equal(once, twice)
    assert once.shape == image.shape and not np.array_equal(once, image)
    np.testing.assert_array_equal(ops.color_jitter(image, np.random.default_rng(1), 0.0), image)


def test_normalise(rng):
    images = rng.integers(0, 256, (2, 4, 5, 3), np.uint8)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    normalised = ops.normalise(images, mean, std)
    assert normalised.dtype == np.float32
    np.testing.assert_allclose(normalised, (images / 255 - mean) / std, atol=1e-6)


# Erasing


def test_erase_boxes_have_the_area_and_ratio_asked_for(rng):
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
    erased = ops.erase(images, boxes)
    assert ((erased == 0).all(axis=-1).sum(axis=(1, 2)) == [12, 0, 25]).all()
    assert (erased[0, 1:4, 2:6] == 0).all()
    noisy = ops.erase(images, boxes, [np.random.default_rng(i) for i in range(3)])
    np.testing.assert_array_equal(noisy != 7, erased != 7)
    assert abs(noisy[2, 5:, 5:10].mean()) < 1 and (images == 7).all()


# Mixing


def pairs(rng, count=400, size=(16, 12), **alphas):
    weights, boxes = ops.draw_mix(rng, count, size, **({"mixup": 0.0, "cutmix": 0.0} | alphas))
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
    weights, boxes = pairs(rng, mixup=1.0, cutmix=1.0, switch=0.25, probability=0.5)
    mixed, cut = weights < 1, boxes[:, 2] > 0
    assert not (mixed & cut).any()
    assert 0.25 < mixed.mean() < 0.5 and 0.05 < cut.mean() < 0.2
    weights, boxes = pairs(rng, mixup=1.0, cutmix=1.0, probability=0.0)
    assert (weights == 1).all() and not boxes.any()
