"""Shared by all parity tests: exact products, comparing gradients, and PyTorch models without weights of 0 or 1."""

import re
import sys
from importlib.util import find_spec
from unittest.mock import MagicMock

import jax
import numpy as np
import pytest

# The parts of torchvision that timm imports, mostly for its datasets.
TORCHVISION = ("", ".datasets", ".models.feature_extraction", ".ops.misc", ".transforms", ".transforms.functional")


@pytest.fixture(autouse=True)
def exact_products():
    """Keeps float32 matrix products in float32 on accelerators that reduce their precision by default."""
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="session")
def worst():
    """Returns worst(ours, theirs, exactly_zero): the largest difference of two dicts of arrays, and its name.

    Each is relative to the largest entry of its array, or for names that match the pattern `exactly_zero`, whose arrays
    are zero but for rounding, to the largest entry of all.
    """

    def find(ours, theirs, exactly_zero="$^"):
        assert ours.keys() == theirs.keys()
        scale = {name: np.abs(array).max() for name, array in theirs.items()}
        largest = max(scale.values())
        scale = {name: largest if re.search(exactly_zero, name) else own for name, own in scale.items()}
        return max((np.abs(ours[name] - theirs[name]).max() / scale[name], name) for name in scale)

    return find


@pytest.fixture(scope="session")
def crossvit():
    """timm's crossvit module.

    timm imports torchvision, which this module does not use. torchvision must match torch's build, and a CPU build is
    not available everywhere, so timm is installed without it and finds stubs instead.
    """
    pytest.importorskip("torch")
    stubs = [] if find_spec("torchvision") else [f"torchvision{name}" for name in TORCHVISION]
    sys.modules.update({name: MagicMock() for name in stubs})
    try:
        return pytest.importorskip("timm.models.crossvit")
    finally:
        for name in stubs:
            del sys.modules[name]


@pytest.fixture
def randomise():
    """Returns randomise(module, head, image): sets all weights and statistics; `image` gives logits of size 1."""
    torch = pytest.importorskip("torch")

    def fill(name, tensor, generator):
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith("running_var"):
            return 1 + 0.5 * torch.rand(tensor.shape, generator=generator)
        if tensor.ndim == 1:
            return ("weight" in name) + 0.1 * noise  # the scale of a norm, else a bias or a mean
        if tensor.ndim == 3:  # class token and positions
            return 0.1 * noise
        return noise * tensor[0].numel() ** -0.5

    def randomise(module, head, image):
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, tensor in module.state_dict().items():
                if tensor.is_floating_point():
                    tensor.copy_(fill(name, tensor, generator))
            logits = module.eval()(image)
            head.weight /= getattr(logits, "logits", logits).std()
        return module

    return randomise
