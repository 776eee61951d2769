"""Every model on a GPU against the same model on the CPU: loss, gradients, evaluation, decoding. Run by `make gpu`.

In float32, with the products' highest precision, both agree up to rounding. In bfloat16 the GPU's gradients are as far
from the CPU's float32 gradients as the CPU's own bfloat16 gradients are.
"""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import decoding, models
from attnjax.nn.kernels import compiling_for, recorded
from attnjax.objectives.classification import ClassificationObjective
from attnjax.objectives.sequence import SequenceObjective

pytestmark = pytest.mark.gpu
CLASSES, VOCABULARY, ROWS = 10, 50, 4
VIT = dict(patch_size=8, width=128, depth=2, num_heads=2, mlp_dim=128)
TEXT = dict(width=128, encoder_depth=2, decoder_depth=2, num_heads=2, mlp_dim=128, dropout=0.0)
RNN = dict(embedding=32, width=64, layers=2, dropout=0.0)
# name -> the model's fields, the pixels of an image or the tokens of source and target, the kernel in bfloat16
CASES = {
    "vit, 17 tokens": (models.fields("vit", **VIT), 32, "cudnn"),
    "vit, 197 tokens": (models.fields("vit", **VIT), 112, "cudnn"),
    "vit, average": (models.fields("vit", pool="average", **VIT), 32, "cudnn"),
    "vit, relative positions": (models.fields("vit", position="relative", **VIT), 32, "xla"),
    "vit, heads of 20": (models.fields("vit", **VIT | dict(width=40)), 32, "xla"),
    "vit, heads of 128": (models.fields("vit", **VIT | dict(num_heads=1)), 32, "cudnn"),
    "vit, scan": (models.fields("vit", scan=True, **VIT), 32, "cudnn"),
    "vit, dropout": (models.fields("vit", dropout=0.1, attention_dropout=0.1, drop_path=0.1, **VIT), 32, "head_major"),
    "swin": (models.fields("swin", width=32, depths=(2, 2), num_heads=(1, 2), drop_path=0.0), 56, "windows"),
    "swin, windows of 4": (
        models.fields("swin", patch_size=2, width=32, depths=(2, 2), num_heads=(2, 4), window=4, shift_by="padding"),
        28,
        "windows",
    ),
    "swin, windows of 9": (models.fields("swin", width=32, depths=(2,), num_heads=(1,), window=9), 72, "head_major"),
    "crossvit": (models.fields("crossvit", "9"), 240, "cudnn"),
    "resnet": (models.fields("resnet", "18", blocks=(1, 1, 1, 1)), 64, None),
    "lenet": (models.fields("lenet"), 32, None),
    "mlp": (models.fields("mlp"), 28, None),
    "transformer, 35 tokens": (models.fields("transformer", **TEXT), (35, 34), "cudnn"),
    "transformer, 64 tokens": (models.fields("transformer", **TEXT), (64, 64), "cudnn"),
    "transformer, packed": (models.fields("transformer", **TEXT), (32, 32), "xla"),
    "transformer, keys of 16": (models.fields("transformer", key_size=16, **TEXT), (35, 34), "head_major"),
    "lstm": (models.fields("rnn", cell="lstm", attention="dot", **RNN), (35, 34), None),
    "gru, additive": (models.fields("rnn", cell="gru", attention="additive", **RNN), (35, 34), None),
    "rnn, without attention": (models.fields("rnn", cell="rnn", attention="none", **RNN), (35, 34), None),
}


def images(size):
    rng = np.random.default_rng(0)
    image = rng.normal(size=(ROWS, size, size, 3)).astype(np.float32)
    return {"image": image, "label": np.arange(ROWS, dtype=np.int32), "mask": np.arange(ROWS) < ROWS - 1}


def sentences(source, target, packed):
    rng = np.random.default_rng(0)
    batch = {}
    for name, length in (("source", source), ("target", target + 1)):
        tokens = rng.integers(4, VOCABULARY, (ROWS, length))
        lengths = rng.integers(length // 2, length + 1, (ROWS, 1))
        lengths[0] = length
        batch[name] = np.where(np.arange(length) < lengths, tokens, 0).astype(np.int32)
        if packed:
            half = lengths // 2
            at = np.arange(length)
            batch[f"{name}_segments"] = np.where(batch[name] == 0, 0, np.where(at < half, 1, 2)).astype(np.int32)
            batch[f"{name}_positions"] = np.where(at < half, at, at - half).astype(np.int32)
    return batch


@functools.cache
def prepared(name):
    """Returns objective(dtype), variables without zeros, and a batch."""
    fields, size, _ = CASES[name]
    if isinstance(size, int):
        batch, example = images(size), ("image",)

        def objective(dtype):
            return ClassificationObjective(models.build(fields, num_classes=CLASSES, dtype=dtype))
    else:
        batch, example = sentences(*size, packed="packed" in name), ("source", "target")
        vocabulary = dict(source_vocabulary=VOCABULARY, target_vocabulary=VOCABULARY)

        def objective(dtype):
            return SequenceObjective(models.build(fields, dtype=dtype, **vocabulary))

    shapes = {key: jax.ShapeDtypeStruct((1, *batch[key].shape[1:]), batch[key].dtype) for key in example}
    with on("cpu"):
        variables = objective("float32").init(jax.random.key(0), shapes)
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda x: x + 0.02 * rng.normal(size=x.shape).astype(x.dtype), variables[0])
    return objective, jax.device_get((params, variables[1])), batch


@contextlib.contextmanager
def on(backend):
    """Computes on the first device of a backend, with the kernels for it."""
    with jax.default_device(jax.devices(backend)[0]), compiling_for(backend):
        yield


@functools.cache
def computed(name, backend, dtype):
    """Returns loss, gradients, evaluation and the attention kernels, as NumPy arrays."""
    objective, variables, batch = prepared(name)
    objective = objective(dtype)

    def loss(params, state, batch):
        total, (weight, _, _) = objective.loss(params, state, batch, jax.random.key(2))
        return total / weight

    with on(backend), recorded() as kernels:
        value, gradients = jax.jit(jax.value_and_grad(loss))(*variables, batch)
        found = jax.jit(lambda *inputs: objective.evaluate(*inputs))(*variables, batch)
    return jax.device_get((value, gradients, found)), {kernel for kernel, _ in kernels}


def distance(one, other):
    """Returns the norm of the difference of two trees, relative to that of the second."""
    squares = [
        sum(float(np.sum(np.square(x, dtype=np.float64))) for x in jax.tree.leaves(t))
        for t in (jax.tree.map(lambda a, b: np.asarray(a, np.float64) - b, one, other), other)
    ]
    return np.sqrt(squares[0] / squares[1])


@pytest.mark.parametrize("name", CASES)
def test_float32_is_the_cpus(name):
    with jax.default_matmul_precision("highest"):
        (value, gradients, found), _ = computed(name, "gpu", "float32")
    (exact, exact_gradients, exact_found), _ = computed(name, "cpu", "float32")
    assert value == pytest.approx(exact, rel=1e-5)
    assert distance(gradients, exact_gradients) < 2e-4
    assert distance(found, exact_found) < 1e-5


@pytest.mark.parametrize("name", CASES)
def test_bfloat16_is_as_near_as_on_the_cpu(name):
    (value, gradients, found), kernels = computed(name, "gpu", "bfloat16")
    (_, rounded_gradients, _), _ = computed(name, "cpu", "bfloat16")
    (exact, exact_gradients, exact_found), _ = computed(name, "cpu", "float32")
    kernel = CASES[name][2]
    assert kernel is None or kernel in kernels
    assert value == pytest.approx(exact, rel=2e-2)
    assert distance(gradients, exact_gradients) < 1.5 * distance(rounded_gradients, exact_gradients) + 1e-3
    assert distance(found["loss"], exact_found["loss"]) < 2e-2


@pytest.mark.parametrize("name", [name for name in CASES if "tokens" in name and "vit" not in name] + ["lstm"])
@pytest.mark.parametrize("beam", [1, 4])
def test_decoding_finds_the_cpus_tokens(name, beam):
    objective, variables, batch = prepared(name)
    options = decoding.Options(max_length=12, beam_size=beam)
    found = []
    for backend in ("cpu", "gpu"):
        with on(backend), jax.default_matmul_precision("highest"):
            search = jax.jit(lambda *inputs: objective("float32").generate(*inputs, options))
            found.append(jax.device_get(search(*variables, batch)))
    np.testing.assert_array_equal(found[0].tokens, found[1].tokens)
    np.testing.assert_allclose(found[0].scores, found[1].scores, rtol=1e-4)
    with on("gpu"):
        half = jax.jit(lambda *inputs: objective("bfloat16").generate(*inputs, options))(*variables, batch)
    assert jnp.isfinite(half.scores).all()
