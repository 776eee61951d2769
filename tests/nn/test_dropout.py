"""Dropout, stochastic depth and batch norm on 8 devices equal those of one device with the global batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from attnjax.models.swin import Swin
from attnjax.models.vit import ViT
from attnjax.nn.data_parallel import bernoulli
from attnjax.nn.dropout import Dropout, DropPath
from attnjax.nn.norm import BatchNorm, counting_rows

ROWS = 16
IMAGES = np.random.default_rng(0).normal(size=(ROWS, 8, 8, 3)).astype(np.float32)
KEY = jax.random.key(3)


def on_all_devices(function):
    """Returns function(replicated, rows) mapped over the rows, which are sharded over the axis "data"."""
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=(P(), P("data")), out_specs=P("data"), check_vma=False))


def both(function, replicated, rows):
    assert jax.device_count() == 8
    one, eight = jax.jit(function)(replicated, rows), on_all_devices(function)(replicated, rows)
    return np.asarray(one), np.asarray(eight)


@pytest.mark.parametrize(
    "layer",
    [Dropout(0.5), Dropout(0.5, broadcast_dims=(1,)), DropPath(0.5), DropPath(jnp.float32(0.5)), Dropout(1.0)],
    ids=["dropout", "dropout, broadcast", "drop path", "drop path, scanned rate", "all"],
)
def test_masks_do_not_depend_on_the_number_of_devices(layer):
    one, eight = both(lambda key, x: layer.apply({}, x, train=True, rngs={"dropout": key}), KEY, jnp.ones((ROWS, 6, 4)))
    np.testing.assert_array_equal(one, eight)
    rows = len({row.tobytes() for row in one})
    assert rows == 1 if getattr(layer, "rate", 0) == 1 else rows > 1


@pytest.mark.parametrize("broadcast_dims", [(), (0, 2)])
def test_dropout_keeps_a_share_and_the_mean(broadcast_dims):
    x = jax.random.normal(jax.random.key(0), (50, 60, 40))
    out = np.asarray(Dropout(0.3, broadcast_dims).apply({}, x, train=True, rngs={"dropout": KEY}))
    kept = out != 0
    for axis in broadcast_dims:
        assert (kept == kept.take([0], axis)).all()
    np.testing.assert_allclose(out[kept], np.asarray(x / 0.7)[kept], rtol=1e-6)
    draws = kept[tuple(slice(1) if axis in broadcast_dims else slice(None) for axis in range(3))]
    assert abs(draws.mean() - 0.7) < 4 * np.sqrt(0.3 * 0.7 / draws.size)
    np.testing.assert_array_equal(Dropout(0.3).apply({}, x, train=False), x)


def test_draws_are_independent():
    """Of their neighbours along each axis and far away, and of those of other keys: no correlation beyond chance."""
    shape, p = (64, 50, 512), 0.9
    draw = jax.jit(lambda key: bernoulli(key, p, shape))
    one = (np.asarray(draw(KEY)) - p) / np.sqrt(p * (1 - p))
    assert abs(one.mean()) < 4 / np.sqrt(one.size)
    # A mean of 64 draws, or 25,600, at each place: their spread is that of independent draws.
    for axes in (0, (1, 2)):
        means = one.mean(axes)
        assert means.std() * np.sqrt(one.size / means.size) == pytest.approx(1, abs=4 / np.sqrt(2 * means.size))
    others = [np.roll(one, shift, axis) for axis in range(3) for shift in (1, 2, 32)]
    others += [(np.asarray(draw(jax.random.fold_in(KEY, i))) - p) / np.sqrt(p * (1 - p)) for i in range(3)]
    for other in others:
        assert abs((one * other).mean()) < 4.5 / np.sqrt(one.size)


def test_all_patterns_of_eight_draws_are_as_frequent():
    draws = np.asarray(bernoulli(KEY, 0.5, (64, 8192)))
    counts = np.bincount(np.packbits(draws), minlength=256)
    assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 350  # chi-squared of 255 degrees of freedom


SMALL = dict(num_classes=3, patch_size=2, dropout=0.2, attention_dropout=0.3, drop_path=0.4)


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("name", ["vit", "swin"])
def test_models_draw_the_same_dropout_on_any_number_of_devices(name, scan):
    if name == "vit":
        model = ViT(**SMALL, width=8, depth=2, num_heads=2, mlp_dim=16, scan=scan)
    else:  # attention inside windows has several rows per example
        model = Swin(**SMALL, width=8, depths=(4,), num_heads=(2,), window=2, mlp_ratio=2.0, scan=scan)
    params = jax.jit(model.init)(jax.random.key(0), IMAGES[:1])["params"]
    noise = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: leaf + 0.3 * noise.normal(size=leaf.shape).astype(np.float32), params)

    def logits(replicated, images):
        params, key = replicated
        return model.apply({"params": params}, images, train=True, rngs={"dropout": key})

    one, eight = both(logits, (params, KEY), IMAGES)
    np.testing.assert_allclose(one, eight, rtol=1e-5, atol=1e-5)
    other = jax.jit(logits)((params, jax.random.key(4)), IMAGES)
    assert np.abs(one - other).max(axis=1).min() > 1e-3  # another mask would show in every row


def test_batch_norm_has_the_statistics_of_the_global_batch():
    x = 5 + 3 * np.random.default_rng(0).normal(size=(ROWS, 4, 4, 6)).astype(np.float32)
    rows = np.arange(ROWS) % 3 != 0  # a device has other numbers of rows that count than its neighbour
    variables = BatchNorm().init(jax.random.key(0), x, train=False)

    def normalize(variables, x):
        x, rows = x
        with counting_rows(rows):
            return BatchNorm().apply(variables, x, train=True, mutable=["batch_stats"])

    one, eight = both(lambda variables, x: normalize(variables, x)[0], variables, (x, rows))
    np.testing.assert_allclose(one, eight, atol=1e-5)

    def statistics(variables, x):
        _, state = normalize(variables, x)
        return jnp.stack([state["batch_stats"]["mean"], state["batch_stats"]["var"]])[None]

    found = np.asarray(on_all_devices(statistics)(variables, (x, rows)))
    expected = [0.1 * x[rows].mean((0, 1, 2)), 0.9 + 0.1 * x[rows].var((0, 1, 2))]
    for device in found:
        np.testing.assert_allclose(device, expected, rtol=1e-4)
