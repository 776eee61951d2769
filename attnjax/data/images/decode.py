"""Image files to arrays, by Pillow."""

import io
import struct
import zipfile
import zlib

import numpy as np
from PIL import Image, ImageOps

# What Pillow and zipfile raise on damaged files, by experience rather than by contract.
DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    RuntimeError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
    Image.DecompressionBombError,
)


def decode_image(data: bytes, channels: int) -> np.ndarray:
    """Decodes an encoded image to uint8 `(H, W, channels)`, grey for 1 channel and RGB for 3.

    The EXIF orientation is applied, of an animation the first frame is taken, 16-bit grey keeps its high byte, and
    transparency is dropped, not composited: the stored colours are what ImageNet trainers feed.

    Raises:
        one of `DAMAGE`: the bytes are no image that Pillow reads, or one with no fixed range of values (mode F).
    """
    with Image.open(io.BytesIO(data)) as image:
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):
            image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
        elif image.mode == "F":
            raise ValueError("float pixels have no fixed range")
        pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    return pixels.reshape(*pixels.shape[:2], channels)
