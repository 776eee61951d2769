"""What all parity tests share: exact products, and PyTorch models in which nothing is zero or one."""

import sys
from importlib.util import find_spec
from unittest.mock import MagicMock

import jax
import pytest

# Of torchvision, what timm's modules import as they load, mostly for its data sets.
TORCHVISION = ("", ".datasets", ".models.feature_extraction", ".ops.misc", ".transforms", ".transforms.functional")


@pytest.fixture(autouse=True)
def exact_products():
    """Keeps float32 products float32 on accelerators that would shorten them."""
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="session")
def crossvit():
    """timm's crossvit module.

    timm needs torchvision, of which this module uses nothing, and which must be of just the build that torch is: for
    the CPU it is not to be had everywhere. So timm is installed without it, and finds empty names in its place.
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
    """Returns randomise(module, head, image): fills all weights and statistics; `image` then gives logits of size 1."""
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
