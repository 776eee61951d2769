import numpy as np
import pytest

from attnjax.data.images.format import ImageFormat


def photo(height=20, width=30, channels=3):
    ramp = np.linspace(0, 255, height * width * channels).reshape(height, width, channels)
    return ramp.astype(np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("resize", ["stretch", "crop"])
@pytest.mark.parametrize("size", [(8, 8), (7, 13), (40, 50)])
def test_fit_gives_the_size(channels, resize, size):
    image_format = ImageFormat(size, channels, resize=resize, interpolation="bicubic")
    fitted = image_format.fit(photo(channels=channels))
    assert fitted.shape == image_format.shape == (*size, channels) and fitted.dtype == np.uint8


def test_fit_crop_takes_the_centre():
    image = np.zeros((10, 20, 1), np.uint8)
    image[:, 5:15] = 255
    assert (ImageFormat((10, 10), resize="crop").fit(image) == 255).all()
    assert ImageFormat((10, 10), resize="stretch").fit(image).min() == 0


def test_fit_keeps_an_image_of_the_size():
    image = photo()
    assert ImageFormat((20, 30)).fit(image) is image


def test_fit_crop_fraction_shows_less():
    image = np.zeros((100, 100, 1), np.uint8)
    image[10:90, 10:90] = 255
    image_format = ImageFormat((20, 20), crop_fraction=0.75)
    assert (image_format.fit(image) == 255).all()
    assert ImageFormat((20, 20)).fit(image).min() == image_format.fit(image, train=True).min() == 0


def test_normalise():
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), np.uint8)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    normalised = ImageFormat((4, 5), mean=mean, std=std).normalise(images)
    assert normalised.dtype == np.float32
    np.testing.assert_allclose(normalised, (images / 255 - mean) / std, atol=1e-6)
