"""Conversions between image files, Pillow images and uint8 arrays."""

import io
import struct
import zipfile
import zlib

import numpy as np
from PIL import Image, ImageOps

# What Pillow and zipfile have been seen to raise on damaged files; neither documents a complete list.
_PYTHON_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, RuntimeError)
DAMAGE = (*_PYTHON_ERRORS, struct.error, zlib.error, zipfile.BadZipFile, Image.DecompressionBombError)


def decode_image(data: bytes, channels: int) -> np.ndarray:
    """Decodes an image file to uint8 `(H, W, channels)`: grey for 1 channel, RGB for 3.

    The EXIF orientation is applied. Animations yield their first frame, and 16-bit grey keeps its high byte. The alpha
    channel is dropped, not composited: the stored colours are what ImageNet training pipelines use. Raises one of
    `DAMAGE` if Pillow cannot read the bytes, or the pixels are floats (mode F), which have no fixed range.
    """
    with Image.open(io.BytesIO(data)) as opened:
        image: Image.Image = ImageOps.exif_transpose(opened)
        if image.mode.startswith("I"):
            image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
        elif image.mode == "F":
            raise ValueError("float pixels have no fixed range")
        pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    return pixels.reshape(*pixels.shape[:2], channels)


def to_pil(image: np.ndarray) -> Image.Image:
    """Converts uint8 `(H, W, C)` to a Pillow image of mode L (C = 1) or RGB (C = 3)."""
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def from_pil(image: Image.Image) -> np.ndarray:
    """Converts a Pillow image of mode L or RGB to uint8 `(H, W, C)`."""
    pixels = np.asarray(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels
