"""Swin: exact sizes, any image size, both kinds of shift, which tokens see each other."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from attnjax import models
from attnjax.errors import UserError
from attnjax.inspection.parameters import count
from attnjax.models.swin import SWIN_SIZES, Swin
from attnjax.nn.dropout import DropPath
from attnjax.training.optimizer import decay_mask

# One stage with a regular and a shifted block.
TINY = dict(patch_size=2, width=8, depths=(2,), num_heads=(2,), window=3, mlp_ratio=2.0)
TWO_STAGES = dict(depths=(1, 2), num_heads=(1, 2))


def tiny(**fields):
    return Swin(num_classes=3, **(TINY | fields))


def init(model, *image):
    return jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((2, *image), jnp.float32))


def make_image(height, width):
    return np.random.default_rng(0).normal(size=(2, height, width, 3)).astype(np.float32)


def random_params(model, *image):
    """Returns random parameters, so that none is 0 or 1."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: 0.3 * rng.normal(size=x.shape).astype(np.float32), init(model, *image))


@pytest.mark.parametrize(
    ("size", "pixels", "classes", "fields", "expected"),
    [
        ("T", 224, 1000, {}, 28_288_354),
        ("S", 224, 1000, {}, 49_606_258),
        ("B", 224, 1000, {}, 87_768_224),
        ("L", 224, 1000, {}, 196_532_476),
        ("B-384", 384, 1000, {}, 87_903_584),
        ("L-384", 384, 1000, {}, 196_735_516),
        ("T", 224, 21_841, {}, 44_315_083),
        ("B", 224, 21_841, {}, 109_130_249),
        ("L", 224, 21_841, {}, 228_565_093),
        ("T", 224, 1000, {"position": "both"}, 28_589_410),
        ("T", 224, 1000, {"position": "none"}, 28_288_354 - 23_322),
        ("T", 224, 1000, {"position": "absolute"}, 28_589_410 - 23_322),
        ("T", 224, 1000, {"shift": False}, 28_288_354),
        ("cifar", 32, 10, {}, 7_073_188),
        ("cifar", 32, 100, {}, 7_107_838),
    ],
)
def test_counts(size, pixels, classes, fields, expected):
    model = models.build(models.fields("swin", size, **fields), num_classes=classes)
    assert count(init(model, pixels, pixels, 3)["params"]) == expected


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        ((224, 224), [(56, 56), (28, 28), (14, 14), (7, 7)]),
        ((192, 640), [(48, 160), (24, 80), (12, 40), (6, 20)]),
        ((225, 301), [(57, 76), (29, 38), (15, 19), (8, 10)]),
        ((3, 2), [(1, 1)] * 4),
    ],
)
def test_features_are_the_pyramid(pixels, expected):
    model = Swin(num_classes=0, **SWIN_SIZES["T"], dtype="bfloat16")
    image = jax.ShapeDtypeStruct((2, *pixels, 3), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), image)
    maps = jax.eval_shape(lambda *args: model.apply(*args, method="features"), params, image)
    channels = (96, 192, 384, 768)
    assert [x.shape for x in maps] == [(2, *size, c) for size, c in zip(expected, channels, strict=True)]
    assert {x.dtype for x in maps} == {jnp.dtype("bfloat16")}
    output = jax.eval_shape(model.apply, params, image)
    assert (output.shape, output.dtype) == ((2, 768), jnp.float32)
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("pixels", [(1, 1), (13, 22), (30, 7)])
def test_any_image_size_has_finite_gradients_that_reach_all(pixels):
    model, image = tiny(position="both", **TWO_STAGES), make_image(*pixels)
    params = random_params(model, *pixels, 3)
    loss = jax.jit(jax.value_and_grad(lambda params: (model.apply(params, image) ** 2).sum()))
    value, gradient = loss(params)
    assert np.isfinite(value)
    alone = pixels == (1, 1)  # a token attends only to itself, for any logits
    for path, leaf in flatten_dict(gradient, sep="/").items():
        assert np.isfinite(leaf).all()
        ignored = "key/bias" in path or (alone and any(part in path for part in ("query", "key", "relative")))
        assert ignored or np.abs(leaf).max() > 1e-6, path


@pytest.mark.parametrize("pixels", [(12, 12), (13, 22), (6, 20)])
def test_padding_computes_what_the_cyclic_shift_computes(pixels):
    image, params = make_image(*pixels), random_params(tiny(), *pixels, 3)

    def map_and_gradient(params, **fields):
        def loss(params):
            (x,) = tiny(**fields).apply(params, image, method="features")
            return (x**2).mean(), x

        gradient, x = jax.grad(loss, has_aux=True)(params)
        return x, gradient

    @jax.jit
    def run(params):
        (unshifted,) = tiny(shift=False).apply(params, image, method="features")
        return map_and_gradient(params), map_and_gradient(params, shift_by="padding"), unshifted

    cyclic, padding, unshifted = run(params)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=1e-6, rtol=1e-4), cyclic, padding)
    assert np.abs(cyclic[0] - unshifted).max() > 0.1


def test_a_window_larger_than_the_map_is_the_map():
    image = make_image(8, 10)  # maps of 4x5 and 2x3
    large, fitting = tiny(window=9, **TWO_STAGES), tiny(window=5, shift=False, **TWO_STAGES)
    params = random_params(large, 8, 10, 3)
    shapes = {path: x.shape for path, x in flatten_dict(params["params"], sep="/").items() if "relative" in path}
    assert shapes == {
        "stage1_block1/attention/relative_positions/embedding": (7, 9, 1),
        "stage2_block1/attention/relative_positions/embedding": (3, 5, 2),
        "stage2_block2/attention/relative_positions/embedding": (3, 5, 2),
    }
    run = jax.jit(lambda params: (large.apply(params, image), fitting.apply(params, image)))
    np.testing.assert_allclose(*run(params), rtol=1e-6)


def make_reach(model):
    """Returns reach(row, column): the tokens (rows, columns) on which this one depends, after each block."""
    image = make_image(16, 16)
    params = random_params(model, 16, 16, 3)

    @jax.jit
    @functools.partial(jax.jacrev, argnums=0)
    def gradients(image, row, column):
        _, state = model.apply(params, image, capture_intermediates=True, mutable=["intermediates"])
        blocks = [state["intermediates"][f"stage1_block{i}"]["__call__"][0] for i in (1, 2)]
        return [x[0, row, column].sum() for x in blocks]

    def reach(row, column):
        seen = [np.abs(g[0]).reshape(8, 2, 8, 2, 3).sum((1, 3, 4)) > 0 for g in gradients(image, row, column)]
        return [tuple(sorted(set(axis.tolist())) for axis in np.nonzero(tokens)) for tokens in seen]

    return reach


@pytest.mark.parametrize("shift_by", ["cyclic", "padding"])
def test_a_token_sees_its_window_and_after_the_shift_the_windows_that_meet_there(shift_by):
    whole, first, last = list(range(8)), [0, 1, 2, 3], [4, 5, 6, 7]
    reach = make_reach(tiny(window=4, shift_by=shift_by))
    assert reach(2, 5) == [(first, last), (whole, whole)]
    # At the border the roll puts tokens from the other end into the window, and the mask hides them.
    assert reach(0, 7) == [(first, last), (first, last)]
    assert reach(3, 0) == [(first, first), (whole, first)]


def test_without_the_shift_a_token_never_sees_beyond_its_window():
    first, last = [0, 1, 2, 3], [4, 5, 6, 7]
    assert make_reach(tiny(window=4, shift=False))(2, 5) == [(first, last), (first, last)]


def test_drop_path_rises_linearly_over_all_blocks():
    rates = []

    def note(call, args, kwargs, context):
        if isinstance(context.module, DropPath):
            rates.append(context.module.rate)
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        init(Swin(num_classes=3, **SWIN_SIZES["T"], drop_path=0.2), 32, 32, 3)
    np.testing.assert_allclose(rates[::2], np.linspace(0, 0.2, 12), atol=1e-9)
    assert rates[::2] == rates[1::2]  # of attention and of MLP


@pytest.mark.parametrize("field", ["dropout", "attention_dropout", "drop_path"])
def test_dropout_acts_in_training_only(field):
    model, image = tiny(**{field: 0.5}), make_image(6, 6)
    params = random_params(model, 6, 6, 3)

    @jax.jit
    def run(params):
        trained = [model.apply(params, image, train=True, rngs={"dropout": jax.random.key(i)}) for i in range(2)]
        return trained, [model.apply(params, image), tiny().apply(params, image)]

    trained, evaluated = run(params)
    assert not np.allclose(*trained)
    np.testing.assert_array_equal(*evaluated)


def test_starts_as_microsofts():
    """Kernels and tables are normal with deviation 0.02; only kernels decay."""
    model = Swin(num_classes=50, width=64, depths=(1, 1), num_heads=(2, 4), window=4, position="both")
    params = jax.jit(model.init)(jax.random.key(0), make_image(32, 32))["params"]
    decays = flatten_dict(decay_mask(params), sep="/")
    for path, leaf in flatten_dict(params, sep="/").items():
        assert decays[path] == path.endswith("kernel")
        if path.endswith(("kernel", "embedding")) and "patch_embedding" not in path:
            assert abs(leaf.mean()) < 0.008 and 0.016 < leaf.std() < 0.024, path


def test_small_ones_start_as_xavier():
    model = Swin(num_classes=50, width=64, depths=(1,), num_heads=(2,), window=2, kernel_std=0.0)
    kernel = jax.jit(model.init)(jax.random.key(0), make_image(4, 4))["params"]["stage1_block1"]["mlp"]["fc1"]["kernel"]
    assert abs(kernel.std() - (2 / (64 + 256)) ** 0.5) < 0.004


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(shift_by="roling"), "unknown shift_by of swin 'roling', .*Known: cyclic, padding"),
        (dict(position="relativ"), "did you mean 'relative'"),
        (dict(depths=(2, 2)), r"depths \(2, 2\) but num_heads \(2,\): both need one entry per stage"),
        (dict(window=0), "window of at least 1 token, got 0"),
        (dict(num_heads=(3,)), "attention width 8 is not divisible by 3 heads"),
    ],
)
def test_bad_fields_are_one_line(fields, message):
    with pytest.raises(UserError, match=message):
        init(tiny(**fields), 8, 8, 3)
