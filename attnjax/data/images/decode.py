"""Conversions between image files, Pillow images and uint8 arrays."""

import io
import struct
import warnings
import zipfile
import zlib

import numpy as np
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

# A few bytes can declare any size. Pillow refuses twice this many pixels, and from here on it warns.
MAX_PIXELS = 89_478_485
MAX_BYTES = 2**29  # of so many pixels, uncompressed, with 16 bits per colour
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)

# What Pillow and zipfile have been seen to raise on damaged files; neither documents a complete list.
_PYTHON_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, RuntimeError)
_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)
DAMAGE = (*_PYTHON_ERRORS, *_BOMBS, struct.error, zlib.error, zipfile.BadZipFile)


def check_bytes(size: int) -> None:
    """Raises ValueError, which is among `DAMAGE`, for a file that is too large for an image."""
    if size > MAX_BYTES:
        raise ValueError(f"the file has {size:,} bytes, more than the {MAX_BYTES:,} that are read")


def decode_image(data: bytes, channels: int) -> np.ndarray:
    """Decodes an image file to uint8 `(H, W, channels)`: grey for 1 channel, RGB for 3.

    The EXIF orientation is applied. Animations yield their first frame. The alpha channel is dropped, not composited:
    the stored colours are what ImageNet training pipelines use. Grey of 9 to 16 bits keeps the highest 8, and 32-bit
    grey must be from 0 to 255. Raises one of `DAMAGE` if Pillow cannot read the bytes, the image has more than
    `MAX_PIXELS`, or its pixels have no fixed range (floats, or other 32-bit values).
    """
    pixels = _decode_jpeg(data) if channels == 3 and data.startswith(b"\xff\xd8") else None
    return _decode_by_pillow(data, channels) if pixels is None else pixels


def _decode_jpeg(data: bytes) -> np.ndarray | None:
    """Decodes a JPEG file to the pixels of Pillow, in two thirds of its time; None for what is not plain RGB or grey.

    None too for files with EXIF data, which may rotate the image, and for damaged ones: Pillow says what is wrong.
    """
    if b"Exif\0\0" in data:
        return None
    try:
        height, width, colors, _ = simplejpeg.decode_jpeg_header(data)
        plain = colors in ("YCbCr", "RGB", "Gray") and height * width <= MAX_PIXELS
        return simplejpeg.decode_jpeg(data, "RGB") if plain else None
    except ValueError:
        return None


def _decode_by_pillow(data: bytes, channels: int) -> np.ndarray:
    try:
        opened = Image.open(io.BytesIO(data))
    except UnidentifiedImageError:
        raise ValueError("it is not an image of a known format" if data else "it is empty") from None
    with opened:
        image: Image.Image = ImageOps.exif_transpose(opened)
        if image.mode.startswith("I"):
            image = Image.fromarray(_eight_bits(np.asarray(image), _depth(opened)))
        elif image.mode == "F":
            raise ValueError("float pixels have no fixed range")
        pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    return pixels.reshape(*pixels.shape[:2], channels)


def _depth(image: Image.Image) -> int:
    """Returns the bits per pixel of a grey image of mode I; Pillow has scaled those of PNG and PGM to 16."""
    return image.tag_v2[258][0] if isinstance(image, TiffImageFile) else 16


def _eight_bits(pixels: np.ndarray, depth: int) -> np.ndarray:
    if depth == 32:
        if pixels.min() < 0 or pixels.max() > 255:
            raise ValueError("32-bit pixels beyond 0..255 have no fixed range: save it with 8 or 16 bits")
        return pixels.astype(np.uint8)
    return (pixels >> (depth - 8)).clip(0, 255).astype(np.uint8)


def to_pil(image: np.ndarray) -> Image.Image:
    """Converts uint8 `(H, W, C)` to a Pillow image of mode L (C = 1) or RGB (C = 3)."""
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def from_pil(image: Image.Image) -> np.ndarray:
    """Converts a Pillow image of mode L or RGB to uint8 `(H, W, C)`."""
    pixels = np.asarray(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels
