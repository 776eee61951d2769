"""A small ViT with random weights, in every file format."""

import numpy as np
import pytest

from attnjax import config as config_lib
from attnjax import models
from attnjax.weights import published
from attnjax.weights.naming import to_published
from attnjax.weights.vit import FORMATS


@pytest.fixture
def make_config():
    """Returns make_config(image_size=..., **model fields): the config of a small ViT."""

    def make(image_size=(16, 16), **fields):
        config = config_lib.classification()
        small = dict(patch_size=4, width=8, depth=2, num_heads=2, mlp_dim=12)
        config.model = models.fields("vit", **(small | fields))
        config.data.image_size = image_size
        return config

    return make


@pytest.fixture
def random_variables():
    """Returns random_variables(config, classes): flat variables without two equal numbers."""

    def make(config, classes):
        rng = np.random.default_rng(0)
        model = models.build(config.model, num_classes=classes)
        shapes = published.variable_shapes(model, (1, *config.data.image_size, config.data.channels))
        return {path: rng.normal(size=shape).astype(np.float32) for path, shape in shapes.items()}

    return make


@pytest.fixture
def named(random_variables):
    """Returns named(format name, config, classes): arrays as the format names them, prepared, and their variables."""

    def make(name, config, classes=3):
        (fmt,) = (fmt for fmt in FORMATS if fmt.name.startswith(name))
        variables = random_variables(config, classes)
        return to_published(variables, fmt, models.build(config.model, num_classes=classes)), variables

    return make
