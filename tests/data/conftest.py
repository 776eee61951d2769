"""Small generated image data, batches and their comparison, and the real data outside the repository."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from attnjax.data.images.sources import ImageSource


@pytest.fixture
def write_images():
    """Returns a function that writes images, `{path: size}`, to a folder, each in a different colour."""

    def write(root: Path, sizes: dict[str, tuple[int, int]]) -> Path:
        for number, (name, (height, width)) in enumerate(sizes.items()):
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((height, width, 3), (number * 7 % 256, 100, 200), np.uint8)).save(path)
        return root

    return write


@pytest.fixture
def memory_source():
    """Returns a function that makes a source of random images labelled by their index, of one `size` or several."""

    def make(length: int, size: tuple[int, int] | None = (8, 8), channels: int = 1, corrupt: tuple[int, ...] = ()):
        rng = np.random.default_rng(0)
        sizes = [size or tuple(rng.integers(6, 14, 2)) for _ in range(length)]
        images = [rng.integers(1, 256, (*shape, channels)).astype(np.uint8) for shape in sizes]

        def load(indices):
            chosen = [images[index] for index in indices]
            mask = ~np.isin(indices, corrupt)
            return np.stack(chosen) if size else chosen, np.asarray(indices, np.int32), mask

        return ImageSource(tuple(map(str, range(length))), channels, length, load, str)

    return make


@pytest.fixture(scope="session")
def take():
    """Returns take(iterator, count): its next batches."""
    return lambda iterator, count: [next(iterator) for _ in range(count)]


@pytest.fixture(scope="session")
def assert_same():
    """Returns assert_same(left, right): two batches have the same arrays, of the same dtypes."""

    def check(left, right):
        assert left.keys() == right.keys()
        for name in left:
            np.testing.assert_array_equal(left[name], right[name], err_msg=name)
            assert left[name].dtype == right[name].dtype, name

    return check


@pytest.fixture
def real_data() -> Path:
    if "ATTNJAX_DATA" not in os.environ:
        pytest.skip("ATTNJAX_DATA, the folder of real data, is not set")
    return Path(os.environ["ATTNJAX_DATA"])
