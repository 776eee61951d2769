"""JPEG files are decoded by simplejpeg where that gives Pillow's pixels, and by Pillow elsewhere."""

import io
import itertools

import numpy as np
import pytest
from PIL import Image

from attnjax.data.images import decode

SIZES = [(1, 1), (16, 9), (37, 53), (500, 375)]


def picture(size, mode="RGB", seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).convert(mode)


def jpeg(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_the_pixels_are_pillows(mode, size):
    for quality, subsampling, progressive in itertools.product([30, 88, 100], [0, 1, 2], [False, True]):
        data = jpeg(picture(size, mode), quality=quality, subsampling=subsampling, progressive=progressive)
        np.testing.assert_array_equal(decode._decode_jpeg(data), decode._decode_by_pillow(data, 3))


def test_what_simplejpeg_cannot_show_is_pillows():
    turned = Image.Exif()
    turned[0x0112] = 6
    for data in (jpeg(picture((9, 7), "CMYK")), jpeg(picture((9, 7)), exif=turned)):
        assert decode._decode_jpeg(data) is None
        np.testing.assert_array_equal(decode.decode_image(data, 3), decode._decode_by_pillow(data, 3))
    assert decode.decode_image(jpeg(picture((9, 7)), exif=turned), 3).shape == (9, 7, 3)


def test_damaged_files_are_pillows_to_judge():
    """Cut anywhere or with one bit flipped: Pillow's pixels, or its error."""
    whole, rng = jpeg(picture((120, 90))), np.random.default_rng(1)
    damaged = [whole[:length] for length in range(2, len(whole), len(whole) // 60)]
    for place in rng.integers(len(whole), size=150):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << rng.integers(8)
        damaged.append(bytes(flipped))
    refused = 0
    for data in damaged:
        try:
            expected = decode._decode_by_pillow(data, 3)
        except decode.DAMAGE as error:
            refused += 1
            with pytest.raises(type(error)):
                decode.decode_image(data, 3)
        else:
            np.testing.assert_array_equal(decode.decode_image(data, 3), expected)
    assert 60 < refused < len(damaged)


def test_too_many_pixels_are_not_decoded(monkeypatch):
    monkeypatch.setattr(decode, "MAX_PIXELS", 62)
    assert decode._decode_jpeg(jpeg(picture((9, 7)))) is None
