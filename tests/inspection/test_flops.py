"""Multiply-adds against Microsoft's code, PyTorch's counter and the Swin paper's equation, by tracing alone."""

import flax.linen as nn
import jax.numpy as jnp
import pytest

from attnjax import models
from attnjax.inspection.flops import microsoft_flops, multiply_adds
from attnjax.models.swin import WindowAttention
from attnjax.nn.attention import MultiHeadAttention


def build(name, size, classes=1000):
    return models.build(models.fields(name, size), num_classes=classes)


@pytest.mark.parametrize(
    ("size", "pixels", "expected"),
    [
        ("T", 224, 4_494_405_120),
        ("S", 224, 8_746_520_064),
        ("B", 224, 15_438_473_216),
        ("L", 224, 34_487_049_216),
        ("B-384", 384, 47_105_253_376),
        ("L-384", 384, 103_952_265_216),
    ],
)
def test_swin_is_microsofts_flops(size, pixels, expected):
    assert microsoft_flops(build("swin", size), (pixels, pixels, 3)) == expected


@pytest.mark.parametrize(
    ("name", "size", "pixels", "classes", "giga"),
    [
        ("vit", "B/16", 224, 1000, 17.564),
        ("vit", "B/16", 384, 1000, 55.484),
        ("vit", "S/32", 224, 1000, 1.143),
        ("resnet", "18", 224, 1000, 1.814),
        ("resnet", "50", 224, 1000, 4.089),
        ("swin", "cifar", 32, 10, 0.2409),
    ],
)
def test_products_and_convolutions_are_pytorchs_counts(name, size, pixels, classes, giga):
    counted = multiply_adds(build(name, size, classes), (pixels, pixels, 3))
    assert counted / 1e9 == pytest.approx(giga, rel=4e-4)


@pytest.mark.parametrize(("height", "width", "channels", "window"), [(8, 12, 6, 4), (14, 14, 4, 7)])
def test_window_attention_is_equation_2(height, width, channels, window):
    layer = WindowAttention(MultiHeadAttention(2, channels, relative_grid=(window, window)), (window, window))
    tokens = height * width
    expected = 4 * tokens * channels**2 + 2 * window**2 * tokens * channels
    assert multiply_adds(layer, (height, width, channels)) == expected


class Repeated(nn.Module):
    """A product of two 3x3 matrices, five times, in a scan."""

    @nn.compact
    def __call__(self, x, *, train=False):
        step = nn.scan(lambda _, x, __: (x @ jnp.ones((3, 3)), None), variable_broadcast="params", length=5)
        return step(self, x[0, :, :, 0], None)[0]


def test_a_scan_counts_all_its_iterations():
    assert multiply_adds(Repeated(), (3, 3, 1)) == 5 * 3**3
