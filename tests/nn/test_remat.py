"""Rematerialization and scan over blocks change how a model is computed, not its parameters or results."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import models
from attnjax.errors import UserError
from attnjax.nn.dropout import Dropout, DropPath
from attnjax.nn.remat import apply_blocks

SMALL = dict(width=16, num_heads=2, mlp_dim=32)
MODELS = {
    "vit": models.fields("vit", **SMALL, patch_size=4, depth=2),
    "vit, relative": models.fields("vit", **SMALL, patch_size=4, depth=2, position="relative"),
    "swin": models.fields("swin", patch_size=2, width=8, depths=(5,), num_heads=(2,), window=2, shift=True),
    "crossvit": models.fields(
        "crossvit", patch_sizes=(2, 4), image_scales=(1.0, 1.0), widths=(8, 16), depths=(1, 2), stages=1, num_heads=2
    ),
    "resnet": models.fields("resnet", blocks=(1, 2), features=(8, 16)),
    "transformer": models.fields("transformer", **SMALL, encoder_depth=2, decoder_depth=2, max_length=8, dropout=0.0),
}
WAYS = {
    "full": {"remat": "full"},
    "scan": {"scan": True},
    "scan, dots": {"scan": True, "remat": "dots"},
}


def build(name, **fields):
    sizes = dict(source_vocabulary=20, target_vocabulary=20) if name == "transformer" else dict(num_classes=5)
    return models.build(models.fields(**{**MODELS[name], **fields}), **sizes)


def inputs(name, rows=4):
    rng = np.random.default_rng(0)
    if name == "transformer":
        source, target = rng.integers(3, 20, (2, rows, 8)) * (np.arange(8) < rng.integers(2, 9, (2, rows, 1)))
        return source, target
    return (rng.normal(size=(rows, 8, 8, 3)).astype(np.float32),)


@functools.cache
def start(name):
    variables = jax.jit(build(name).init)({"params": jax.random.key(0)}, *inputs(name))
    # Moved, because biases and other parameters that start at zero would hide a mistake.
    rng = np.random.default_rng(1)
    moved = jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape).astype(np.float32), variables["params"])
    return {**variables, "params": moved}


def gradients(model, variables, *arrays):
    """Returns the loss, the collections that training updates (batch statistics), and the gradients."""
    rest = {name: tree for name, tree in variables.items() if name != "params"}

    def loss(params):
        logits, written = model.apply({**rest, "params": params}, *arrays, train=True, mutable=list(rest))
        return jnp.mean(jnp.square(logits)), written

    (value, written), found = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])
    return value, written, found


@pytest.mark.parametrize("name", MODELS)
def test_the_same_loss_and_gradients(name):
    variables = start(name)
    plain = gradients(build(name), variables, *inputs(name))
    for way, fields in WAYS.items():
        if name == "resnet" and way != "full":  # it has no scan, since the shapes of its blocks differ
            continue
        other = gradients(build(name, **fields), variables, *inputs(name))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), plain, other)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "resnet"])
def test_a_scan_starts_from_the_same_parameters_and_shows_the_same_intermediates(name, apply):
    plain, scanned = build(name), build(name, scan=True, remat="full")
    one, other = (jax.jit(model.init)({"params": jax.random.key(0)}, *inputs(name)) for model in (plain, scanned))
    jax.tree.map(np.testing.assert_array_equal, one, other)
    one, other = (apply(model, one, *inputs(name), mutable="intermediates")[1] for model in (plain, scanned))
    assert one["intermediates"]
    jax.tree.map(np.testing.assert_array_equal, one, other)


def products(name, **fields):
    """Returns the number of matrix products in the jaxpr of a forward pass."""
    model = build(name, **fields)
    variables = jax.eval_shape(lambda: model.init({"params": jax.random.key(0)}, *inputs(name)))
    return str(jax.make_jaxpr(lambda v: model.apply(v, *inputs(name)))(variables)).count("dot_general")


@pytest.mark.parametrize(
    ("name", "shallow", "deep"),
    [
        ("vit", {"depth": 2}, {"depth": 4}),
        ("swin", {"depths": (4,)}, {"depths": (8,)}),
        ("crossvit", {"depths": (1, 2)}, {"depths": (1, 4)}),
        ("transformer", {"decoder_depth": 2}, {"decoder_depth": 4}),
    ],
)
def test_a_scanned_program_does_not_grow_with_depth(name, shallow, deep):
    assert products(name, **shallow, scan=True) == products(name, **deep, scan=True)
    assert products(name, **shallow) < products(name, **deep)


def activation_bytes(**fields):
    """Returns the bytes of temporary buffers of a gradient step, as planned by the compiler."""
    fields = {"depth": 8, "width": 32, "patch_size": 2, **fields}
    model, images = build("vit", **fields), np.zeros((16, 32, 32, 3), np.float32)
    params = jax.eval_shape(lambda: model.init({"params": jax.random.key(0)}, images[:1]))["params"]
    loss = jax.grad(lambda params: jnp.mean(jnp.square(model.apply({"params": params}, images, train=True))))
    return jax.jit(loss).lower(params).compile().memory_analysis().temp_size_in_bytes


def test_remat_saves_memory():
    whole = activation_bytes(scan=True)
    dots, full = (activation_bytes(scan=True, remat=remat) for remat in ("dots", "full"))
    assert full < dots < whole
    assert full < whole / 3


class Half(nn.Module):
    """Drops half of its input."""

    @nn.compact
    def __call__(self, x, *, mask, train):
        self.param("unused", nn.initializers.zeros, (1,))
        return Dropout(0.5)(x, train=train)


class Row(nn.Module):
    scan: bool

    @nn.compact
    def __call__(self, x, train=False):
        return apply_blocks([Half() for _ in range(3)], x, remat="full", scan=self.scan, train=train)


@pytest.mark.parametrize("scan", [False, True])
def test_every_block_draws_dropout_of_its_own(scan, apply):
    x = jnp.ones((10_000,))
    variables = Row(scan).init({"params": jax.random.key(0)}, x)
    once, again, other = (
        apply(Row(scan), variables, x, train=True, rngs={"dropout": jax.random.key(i)}) for i in (1, 1, 2)
    )
    assert set(np.unique(once)) == {0, 8}
    assert np.mean(once != 0) == pytest.approx(1 / 8, abs=0.01)
    np.testing.assert_array_equal(once, again)
    assert np.any(once != other)


def test_every_scanned_block_has_its_own_rate_of_stochastic_depth(apply):
    """With rates from 0 to 0.9999 the first of two blocks is never dropped and the second practically always."""
    two, one = build("vit", depth=2, drop_path=0.9999, scan=True, final_norm=True), build("vit", depth=1)
    variables, images = start("vit"), inputs("vit")
    found = apply(two, variables, *images, train=True, rngs={"dropout": jax.random.key(0)})
    np.testing.assert_allclose(found, apply(one, variables, *images), rtol=1e-5, atol=1e-5)


def test_a_rate_of_a_scan_drops_as_often_as_one_that_is_known():
    y = jnp.ones((20_000, 2, 3))
    dropped = DropPath(jnp.float32(0.3)).apply({}, y, train=True, rngs={"dropout": jax.random.key(0)})
    per_example = np.unique(np.asarray(dropped).reshape(len(y), -1), axis=1)
    assert per_example.shape[1] == 1  # a branch is dropped per example
    assert np.mean(per_example == 0) == pytest.approx(0.3, abs=0.01)
    np.testing.assert_allclose(np.max(dropped), 1 / 0.7, rtol=1e-6)
    np.testing.assert_array_equal(DropPath(jnp.float32(0.3)).apply({}, y, train=False), y)


def test_unknown_remat():
    with pytest.raises(UserError, match="unknown remat 'ful', did you mean 'full'"):
        jax.eval_shape(build("vit", remat="ful").init, {"params": jax.random.key(0)}, *inputs("vit"))
