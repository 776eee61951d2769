"""Recurrent layers against torch.nn's: outputs and states within 1e-6, gradients within 1e-5 of the largest entry."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.nn.recurrent import Recurrent, bidirectional

torch = pytest.importorskip("torch")

# our cell -> torch's
CELLS = {"rnn": torch.nn.RNN, "gru": torch.nn.GRU, "lstm": torch.nn.LSTM}
INPUTS, STATES = 5, 7


@pytest.fixture
def sequences():
    """Returns inputs (3, 6, INPUTS) of three lengths, unsorted, and the lengths."""
    return np.random.default_rng(0).normal(size=(3, 6, INPUTS)).astype(np.float32), np.array([4, 6, 1])


def torch_parameters(module):
    """Returns its parameters as our Recurrent's, by (layer, direction)."""
    found = {}
    for name, parameter in module.named_parameters():
        kind, part, layer, reverse = re.fullmatch(r"(weight|bias)_(ih|hh)_l(\d)(_reverse)?", name).groups()
        array = parameter.detach().numpy()
        ours = found.setdefault((int(layer), bool(reverse)), {}).setdefault({"ih": "input", "hh": "hidden"}[part], {})
        ours["kernel" if kind == "weight" else "bias"] = array.T if kind == "weight" else array
    return found


def run_recurrent(cell, layers, params, x, mask):
    """Returns outputs, and the last states in torch's layout: arrays (layers * directions, B, STATES)."""
    states = []
    for layer in range(layers):
        weights = [params[direction] for direction in sorted(params) if direction[0] == layer]
        bound = [Recurrent(cell, STATES).bind({"params": own}) for own in weights]
        x, *last = bidirectional(*bound, x, mask) if len(bound) > 1 else bound[0](x, mask)
        states += last
    return x, tuple(jnp.stack(arrays) for arrays in zip(*states, strict=True))


@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "bidirectional"])
@pytest.mark.parametrize("cell", CELLS)
def test_recurrent_layers_are_torchs(cell, bidirectional, sequences, worst):
    x, lengths = sequences
    torch.manual_seed(0)
    module = CELLS[cell](INPUTS, STATES, num_layers=2, bidirectional=bidirectional, batch_first=True)
    given = torch.from_numpy(x).requires_grad_()
    packed = torch.nn.utils.rnn.pack_padded_sequence(given, lengths, batch_first=True, enforce_sorted=False)
    outputs, last = module(packed)
    outputs, _ = torch.nn.utils.rnn.pad_packed_sequence(outputs, batch_first=True)
    last = last if isinstance(last, tuple) else (last,)
    rng = np.random.default_rng(1)
    factors = [rng.normal(size=array.shape).astype(np.float32) for array in (outputs, *last)]
    sum((torch.from_numpy(f) * array).sum() for f, array in zip(factors, (outputs, *last), strict=True)).backward()

    mask = np.arange(x.shape[1]) < lengths[:, None]

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
    def loss(params, x):
        found, states = run_recurrent(cell, 2, params, x, mask)
        arrays = (found, *states)
        return sum((f * array).sum() for f, array in zip(factors, arrays, strict=True)), arrays

    (_, arrays), (gradient, of_x) = loss(torch_parameters(module), x)
    for ours, theirs in zip(arrays, (outputs, *last), strict=True):
        np.testing.assert_allclose(ours, theirs.detach(), atol=1e-6)
    for parameter in module.parameters():
        parameter.data = parameter.grad
    expected = {"x": given.grad.numpy(), **flatten_keys(torch_parameters(module))}
    relative = worst({"x": np.asarray(of_x), **flatten_keys(gradient)}, expected)
    print(f"\n{cell}: outputs {np.abs(arrays[0] - outputs.detach().numpy()).max():.1e}; gradient {relative}")
    assert relative[0] < 1e-5


def flatten_keys(params):
    return {
        f"{layer} {reverse} {part} {leaf}": np.asarray(array)
        for (layer, reverse), parts in params.items()
        for part, leaves in parts.items()
        for leaf, array in leaves.items()
    }
