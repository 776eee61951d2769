"""data.resizer=opencv, which is an extra, against OpenCV itself and Pillow."""

import dataclasses

import numpy as np
import pytest

from attnjax.data.images.format import ImageFormat

cv2 = pytest.importorskip("cv2")

SMOOTH = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8), (0, 0), 4)


@pytest.mark.parametrize(("name", "flag"), [("bilinear", cv2.INTER_LINEAR), ("bicubic", cv2.INTER_CUBIC)])
@pytest.mark.parametrize("size", [(60, 70), (100, 130), (60, 30)])
def test_resizes_as_opencv(name, flag, size):
    image_format = ImageFormat((32, 32), interpolation=name, resizer="opencv")
    expected = cv2.resize(SMOOTH[5:, 3:], size[::-1], interpolation=flag)
    np.testing.assert_array_equal(image_format.resized(SMOOTH[5:, 3:], size), expected)
    grey = image_format.resized(SMOOTH[..., :1], size)
    assert grey.shape == (*size, 1)


@pytest.mark.parametrize("size", [(20, 30), (45, 60)])
def test_averages_areas_where_an_image_shrinks_to_half(size):
    opencv = ImageFormat((32, 32), resizer="opencv")
    pillow = dataclasses.replace(opencv, resizer="pillow")
    found, expected = opencv.resized(SMOOTH, size), pillow.resized(SMOOTH, size)
    assert np.abs(found.astype(int) - expected).mean() < 1


def test_fits_like_pillow():
    opencv = ImageFormat((40, 40), resize="crop", crop_fraction=0.875, resizer="opencv")
    pillow = dataclasses.replace(opencv, resizer="pillow")
    assert np.abs(opencv.fit(SMOOTH).astype(int) - pillow.fit(SMOOTH)).mean() < 1.5
