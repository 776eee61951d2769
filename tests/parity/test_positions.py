"""The rules for resizing position tables against the functions that the published code calls."""

import numpy as np
import pytest

from attnjax.models.crossvit import resize_images
from attnjax.nn.positions import resize_grid

torch = pytest.importorskip("torch")
ndimage = pytest.importorskip("scipy.ndimage")

GRIDS = [((14, 14), (24, 24)), ((24, 24), (14, 14)), ((14, 14), (10, 6)), ((7, 5), (5, 11)), ((3, 3), (1, 8))]


def table(grid):
    return np.random.default_rng(0).normal(size=(*grid, 4)).astype(np.float32)


@pytest.mark.parametrize(("old", "new"), GRIDS)
@pytest.mark.parametrize(("rule", "antialias"), [("bicubic", False), ("bicubic_antialias", True)])
def test_bicubic_rules_are_torchs(old, new, rule, antialias):
    image = torch.from_numpy(table(old)).permute(2, 0, 1)[None]
    expected = torch.nn.functional.interpolate(image, size=new, mode="bicubic", antialias=antialias)[0]
    np.testing.assert_allclose(resize_grid(table(old), new, rule), expected.permute(1, 2, 0), atol=1e-5)


@pytest.mark.parametrize(("old", "new"), GRIDS)
def test_googles_rule_is_scipys_zoom(old, new):
    zoom = (new[0] / old[0], new[1] / old[1], 1)
    expected = ndimage.zoom(table(old), zoom, order=1)
    np.testing.assert_allclose(resize_grid(table(old), new, "linear_align_corners"), expected, atol=1e-6)


@pytest.mark.parametrize(("old", "new"), [((240, 240), (224, 224)), ((30, 20), (47, 13)), ((2, 5), (4, 5))])
def test_images_are_resized_as_by_torch(old, new):
    # In float64: torch's float32 pixel coordinates are exact to 1e-5 only, which on noise shifts values by 1e-4.
    image = np.random.default_rng(0).normal(size=(2, *old, 3))
    expected = torch.nn.functional.interpolate(torch.from_numpy(image).permute(0, 3, 1, 2), size=new, mode="bicubic")
    ours = resize_images(image.astype(np.float32), new)
    np.testing.assert_allclose(ours, expected.permute(0, 2, 3, 1), atol=5e-6)
