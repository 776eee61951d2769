"""How images become model inputs: size, channels, resampling and normalisation."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from attnjax.data.images.decode import DAMAGE, MAX_PIXELS, check_bytes, decode_image, from_pil, to_pil
from attnjax.errors import UserError, check_choice, import_extra

Images = np.ndarray | list[np.ndarray]  # uint8: one array (B, H, W, C), or a list of (H, W, C) of different sizes

INTERPOLATIONS = {name: Image.Resampling[name.upper()] for name in ("nearest", "bilinear", "bicubic")}
RESIZES = ("stretch", "crop")
RESIZERS = ("pillow", "opencv")


@dataclass(frozen=True)
class ImageFormat:
    """The format of a model's images, and how decoded images are brought to it; UserError if a value is impossible.

    Attributes:
        image_size: height and width in pixels.
        channels: 1 (grey) or 3 (RGB).
        mean, std: of pixels scaled to [0, 1], one value or one per channel.
        resize: `stretch` resizes both sides to `image_size / crop_fraction`; `crop` keeps the aspect ratio and resizes
            until the image covers this size. Both antialias, and crop the centre.
        interpolation: one of `INTERPOLATIONS`.
        resizer: `pillow`, with antialiasing, like the sources of the papers' recipes; or `opencv`, several times as
            fast and without antialiasing, but averaging areas where both sides shrink to half or less.
        crop_fraction: of the evaluation's centre crop; training images are cropped with 1.
    """

    image_size: tuple[int, int]
    channels: int = 3
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    resize: str = "crop"
    interpolation: str = "bilinear"
    resizer: str = "pillow"
    crop_fraction: float = 1.0

    def __post_init__(self):
        check_channels(self.channels)
        if len(self.image_size) != 2 or not all(isinstance(side, int) and side > 0 for side in self.image_size):
            raise UserError(f"image_size is {self.image_size}: it should be (height, width) in pixels")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, self.channels):
                right = f"1 or {self.channels}, one per channel"
                raise UserError(f"{name} has {len(values)} values: it should have {right}")
        if min(self.std) <= 0:
            raise UserError(f"std is {self.std}: it should be positive")
        check_choice("resize", self.resize, RESIZES)
        check_choice("interpolation", self.interpolation, tuple(INTERPOLATIONS))
        check_choice("resizer", self.resizer, RESIZERS)
        if self.resizer == "opencv":
            import_extra("cv2", "opencv")
        if not 0 < self.crop_fraction <= 1:
            raise UserError(f"crop_fraction is {self.crop_fraction}: it should be in (0, 1]")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        return (*self.image_size, self.channels)

    def fit(self, image: np.ndarray, *, train: bool = False) -> np.ndarray:
        """Resizes and crops one image, uint8 `(H', W', C) -> (H, W, C)`, rounding the crop as torchvision does.

        An image that already has the size is returned unchanged. `train` ignores `crop_fraction`.
        """
        (height, width), crop_fraction = self.image_size, 1.0 if train else self.crop_fraction
        if image.shape[:2] == (height, width) and crop_fraction == 1:
            return image
        # Rounding errors must not truncate a side to one pixel less.
        new_height, new_width = (int(side / crop_fraction + 1e-6) for side in (height, width))
        if self.resize == "crop":
            scale = max(new_height / image.shape[0], new_width / image.shape[1])
            new_height, new_width = (int(side * scale + 1e-6) for side in image.shape[:2])
        top, left = round((new_height - height) / 2), round((new_width - width) / 2)
        if new_height * new_width > MAX_PIXELS:  # a very long image: only the part that is kept is resized
            down, across = image.shape[0] / new_height, image.shape[1] / new_width
            box = (left * across, top * down, (left + width) * across, (top + height) * down)
            return from_pil(to_pil(image).resize((width, height), INTERPOLATIONS[self.interpolation], box))
        return self.resized(image, (new_height, new_width))[top : top + height, left : left + width]

    def resized(self, image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Resizes one image, uint8 `(H', W', C)`, to `size` (height, width) by the interpolation of this format."""
        if self.resizer == "pillow":
            return from_pil(to_pil(image).resize(size[::-1], INTERPOLATIONS[self.interpolation]))
        import cv2

        shrunk = 2 * size[0] <= image.shape[0] and 2 * size[1] <= image.shape[1]
        flags = {"nearest": cv2.INTER_NEAREST, "bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}
        flag = cv2.INTER_AREA if shrunk and self.interpolation != "nearest" else flags[self.interpolation]
        return cv2.resize(image, size[::-1], interpolation=flag).reshape(*size, image.shape[-1])

    def fit_batch(self, images: Images, out: np.ndarray, *, train: bool = False) -> None:
        """Fits every image, to uint8 `out` `(B, H, W, C)`."""
        if isinstance(images, np.ndarray) and images.shape == out.shape and (train or self.crop_fraction == 1):
            out[...] = images
            return
        for row, image in enumerate(images):
            out[row] = self.fit(image, train=train)

    def normalise(self, images: Any) -> Any:
        """Returns `(images / 255 - mean) / std` in float32 for uint8 images `(..., C)` of NumPy or JAX."""
        mean, std = np.asarray(self.mean, np.float64), np.asarray(self.std, np.float64)
        return images * (1 / (255 * std)).astype(np.float32) + (-mean / std).astype(np.float32)


def read_image(path: Path, image_format: ImageFormat) -> np.ndarray:
    """Reads an image file as evaluation sees it, `(H, W, C)` float32; UserError if it is missing or damaged."""
    try:
        check_bytes(path.stat().st_size)
        image = decode_image(path.read_bytes(), image_format.channels)
    except FileNotFoundError:
        raise UserError(f"no image file '{path}'") from None
    except DAMAGE as error:
        raise UserError(f"cannot read image {path}: {error}") from error
    return image_format.normalise(image_format.fit(image))


def check_channels(channels: int) -> None:
    """Raises UserError unless `channels` is 1 or 3."""
    if channels not in (1, 3):
        raise UserError(f"channels is {channels}: images have 1 (grey) or 3 (RGB)")
