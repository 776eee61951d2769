"""Arrays of a small Marian, and the same as our parameters."""

import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from attnjax.weights.transformer import read
from tests.weights.encoder_decoders import DEPTH, HIDDEN, SHARED, WIDTH, V, make_model, write


@pytest.fixture
def arrays():
    """Random arrays as in Hugging Face's Marian with one shared table."""
    rng = np.random.default_rng(0)
    square, vector = (WIDTH, WIDTH), (WIDTH,)
    attention = {f"{part}_proj": (square, vector) for part in ("q", "k", "v", "out")}
    layers = {"fc1": ((HIDDEN, WIDTH), (HIDDEN,)), "fc2": ((WIDTH, HIDDEN), vector)}
    norms = {"encoder": ("self_attn", "final"), "decoder": ("self_attn", "encoder_attn", "final")}
    shapes = {SHARED: (V, WIDTH)}
    for part in ("encoder", "decoder"):
        inside = {f"{norm}_layer_norm": (vector, vector) for norm in norms[part]} | layers
        inside |= {f"{norm}.{name}": shape for norm in norms[part][:-1] for name, shape in attention.items()}
        for i in range(DEPTH):
            for name, (weight, bias) in inside.items():
                shapes |= {
                    f"model.{part}.layers.{i}.{name}.weight": weight,
                    f"model.{part}.layers.{i}.{name}.bias": bias,
                }
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture
def params(arrays, tmp_path):
    """The same as our parameters, flat; padding comes first in both."""
    return flatten_dict(read(write(tmp_path / "expected", arrays), make_model()), sep="/")
