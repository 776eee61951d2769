"""Exact parameter counts by shape evaluation, without arrays; those of papers' tables are in reports/test_tables.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import models
from attnjax.errors import UserError
from attnjax.inspection.parameters import count
from attnjax.inspection.receptive_field import receptive_fields
from attnjax.models.cnn import pad_shortcut


def shapes(name, image, classes, size=None, dtype="float32", **changes):
    model = models.build(models.fields(name, size, **changes), num_classes=classes, dtype=dtype)
    return jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), jnp.zeros((2, *image))))


def parameters(*args, **kwargs):
    return count(shapes(*args, **kwargs)[1]["params"])


@pytest.mark.parametrize(
    ("size", "pixels", "expected"),
    [
        ("Ti/16", 224, 5_717_416),
        ("S/16", 224, 22_050_664),
        ("S/32", 224, 22_878_952),
        ("B/8", 224, 86_576_872),
        ("B/16", 384, 86_859_496),
        ("B/32", 384, 88_297_192),
        ("L/16", 384, 304_715_752),
        ("L/32", 384, 306_632_680),
    ],
)
def test_vit_counts(size, pixels, expected):
    assert parameters("vit", (pixels, pixels, 3), 1000, size) == expected


@pytest.mark.parametrize(("size", "expected"), [("S/16", 22_049_896), ("S/32", 22_878_184), ("B/16", 86_566_120)])
def test_vit_counts_pooled(size, expected):
    assert parameters("vit", (224, 224, 3), 1000, size, pool="average") == expected


def test_vit_counts_of_other_heads():
    assert parameters("vit", (224, 224, 3), 21_843, "B/16") == 102_595_923
    assert parameters("vit", (224, 224, 3), 21_843, "B/16", pre_logits=768) == 102_595_923 + 768 * 769
    assert parameters("vit", (224, 224, 3), 0, "L/32") == 305_510_400
    assert parameters("vit", (224, 224, 3), 0, "H/14") == 630_764_800


def test_small_counts():
    assert parameters("lenet", (32, 32, 1), 10) == 61_706
    assert parameters("mlp", (28, 28, 1), 10) == 784 * 256 + 256 + 256 * 128 + 128 + 128 * 64 + 64 + 64 * 10 + 10
    assert parameters("mlp", (28, 28, 1), 10, widths=(5,)) == 784 * 5 + 5 + 5 * 10 + 10


@pytest.mark.parametrize("name_and_size", [("mlp", None), ("lenet", None), ("resnet", "cifar20"), ("vit", "S/32")])
def test_logits_are_float32_under_bfloat16(name_and_size):
    name, size = name_and_size
    logits, variables = shapes(name, (32, 32, 3), 7, size, dtype="bfloat16")
    assert logits.shape == (2, 7) and logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(variables["params"])} == {jnp.dtype("float32")}


def test_vit_reads_any_size_of_image_and_names_a_bad_one():
    assert shapes("vit", (32, 64, 3), 5, "S/16")[1]["params"]["positions"]["embedding"].shape == (1, 9, 384)
    with pytest.raises(UserError, match=r"30x64 is not divisible by the patch size 16; the nearest that is: 32x64"):
        shapes("vit", (30, 64, 3), 5, "S/16")


def test_vit_stochastic_depth_needs_training_and_changes_the_output(apply):
    config = models.fields("vit", patch_size=4, width=8, depth=3, num_heads=2, mlp_dim=16, drop_path=0.9)
    model = models.build(config, num_classes=3)
    x = jax.random.normal(jax.random.key(0), (4, 8, 8, 1))
    params = jax.jit(model.init)(jax.random.key(0), x)
    params["params"]["head"]["kernel"] = jnp.ones((8, 3)).at[0].set(2.0)
    trained = [apply(model, params, x, train=True, rngs={"dropout": jax.random.key(seed)}) for seed in range(2)]
    assert not np.allclose(*trained)
    assert np.isfinite(apply(model, params, x)).all()


def test_option_a_shortcut_subsamples_and_pads_channels():
    x = jnp.arange(2 * 4 * 4 * 2.0).reshape(2, 4, 4, 2)
    out = pad_shortcut(x, 6, 2)
    assert out.shape == (2, 2, 2, 6)
    np.testing.assert_array_equal(out[..., 2:4], x[:, ::2, ::2])
    np.testing.assert_array_equal(out[..., [0, 1, 4, 5]], 0)


def test_pooling_is_a_named_choice(apply):
    x = jax.random.normal(jax.random.key(0), (2, 32, 32, 1))
    average = models.build(models.fields("lenet"), num_classes=4)
    params = jax.jit(average.init)(jax.random.key(1), x)
    maximum = models.build(models.fields("lenet", pooling="max"), num_classes=4)
    assert not np.allclose(apply(average, params, x), apply(maximum, params, x))


@pytest.mark.parametrize(
    ("name", "size", "image", "expected"),
    [("lenet", None, (32, 32, 1), 32), ("resnet", "18", (224, 224, 3), 435), ("resnet", "50", (224, 224, 3), 427)],
)
def test_receptive_field_of_the_last_layer(name, size, image, expected):
    """ResNet-18 and 50 as in Araujo et al. (2019), except that their ResNet-50 (483) has the stride in the 1x1."""
    model = models.build(models.fields(name, size), num_classes=10)
    assert receptive_fields(model, image)[-1].size == (expected, expected)


def test_receptive_field_is_what_gradients_reach():
    model = models.build(models.fields("resnet", "cifar8"), num_classes=10)
    x = jax.random.normal(jax.random.key(0), (1, 32, 32, 1))
    variables = jax.jit(model.init)(jax.random.key(1), x)

    def centre(x):
        _, state = model.apply(variables, x, capture_intermediates=True, mutable=["intermediates"])
        return state["intermediates"]["stage3_block1"]["__call__"][0][0, 4, 4].sum()

    reached = np.nonzero(np.abs(jax.jit(jax.grad(centre))(x)[0, :, :, 0]).sum(1))[0]
    fields = {field.name: field for field in receptive_fields(model, (32, 32, 1))}
    assert reached.max() - reached.min() + 1 <= fields["stage3_block1/conv2 convolution"].size[0]
    assert reached.max() - reached.min() + 1 >= fields["stage3_block1/conv2 convolution"].size[0] - 2
