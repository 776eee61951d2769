import numpy as np
import pytest
from PIL import Image

from attnjax.data.images import image_ops as ops
from attnjax.data.images.augment import Augmentation
from attnjax.data.images.decode import to_pil
from attnjax.data.images.format import ImageFormat


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def photo(height=20, width=30, channels=3):
    ramp = np.linspace(0, 255, height * width * channels).reshape(height, width, channels)
    return ramp.astype(np.uint8)


def test_resized_crop_boxes_stay_inside_and_keep_scale_and_ratio(rng):
    for height, width in [(20, 30), (64, 64), (7, 90)]:
        for _ in range(100):
            image, augmentation = photo(height, width), Augmentation(scale=(0.2, 0.9), ratio=(3 / 4, 4 / 3))
            top, left, h, w = ops._resized_crop_box(image, rng, augmentation)
            assert 0 <= top <= height - h and 0 <= left <= width - w
            if (height, width) == (64, 64):  # a thin image may need the fallback
                assert 0.2 * 0.9 <= h * w / 64**2 <= 0.9 * 1.1
                assert 0.7 <= w / h <= 1.43


def test_resized_crop_of_everything_is_a_resize(rng):
    image = photo(24, 24)
    image_format = ImageFormat((12, 12), resize="stretch")
    cropped = ops.random_resized_crop(image, rng, Augmentation(scale=(1.0, 1.0), ratio=(1.0, 1.0)), image_format)
    np.testing.assert_array_equal(cropped, image_format.fit(image))


@pytest.mark.parametrize("name", list(ops.OPERATIONS))
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_operation_keeps_form_and_is_deterministic(name, channels, level):
    picture = to_pil(photo(channels=channels))
    once, twice = (ops.apply_operation(picture, name, level, np.random.default_rng(3), (5,)) for _ in range(2))
    assert once.mode == picture.mode and once.size == picture.size
    assert once.tobytes() == twice.tobytes()


@pytest.mark.parametrize("name", sorted(set(ops.OPERATIONS) - {"auto_contrast"}))
def test_operation_changes_the_picture(name, rng):
    # The ramp already spans 0..255, which is what auto_contrast would do.
    picture = to_pil(rng.integers(0, 256, (20, 30, 3), np.uint8))
    assert ops.apply_operation(picture, name, 0.9, rng).tobytes() != picture.tobytes()


@pytest.mark.parametrize("name", ["rotate", "shear_x", "color", "brightness", "translate_y", "solarize"])
def test_level_zero_changes_nothing(name, rng):
    picture = to_pil(photo())
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


def test_pixels_from_outside_have_the_fill_colour(rng):
    picture = to_pil(photo(20, 40))
    moved = np.asarray(ops.apply_operation(picture, "translate_x", 1.0, rng, (1, 2, 3), "nearest"))
    assert (moved == (1, 2, 3)).all(axis=-1).sum() == 20 * 0.45 * 40


@pytest.mark.parametrize("channels", [1, 3])
def test_randaugment(channels):
    image, image_format = photo(channels=channels), ImageFormat((20, 30), channels, interpolation="bicubic")

    def changed(seed, layers):
        return ops.randaugment(
            image, np.random.default_rng(seed), Augmentation(randaugment_layers=layers), image_format
        )

    results = [changed(seed, layers=3) for seed in (1, 1, *range(2, 12))]
    assert all(result.shape == image.shape and result.dtype == np.uint8 for result in results)
    np.testing.assert_array_equal(results[0], results[1])
    assert sum(not np.array_equal(result, image) for result in results) > 5
    np.testing.assert_array_equal(changed(0, layers=0), image)


@pytest.mark.parametrize("channels", [1, 3])
def test_color_jitter(channels):
    image = photo(channels=channels)
    once, twice = (ops.color_jitter(image, np.random.default_rng(1), 0.4) for _ in range(2))
    np.testing.assert_array_equal(once, twice)
    assert once.shape == image.shape and not np.array_equal(once, image)
    np.testing.assert_array_equal(ops.color_jitter(image, np.random.default_rng(1), 0.0), image)
