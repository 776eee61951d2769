"""CrossViT: exact sizes, what each branch sees, what the cross-attention of class tokens lets through."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from attnjax import models
from attnjax.errors import UserError
from attnjax.inspection.flops import multiply_adds
from attnjax.inspection.parameters import count
from attnjax.models.crossvit import CROSSVIT_SIZES, CrossViT, Fusion, branch_grids, resize_images
from attnjax.nn.dropout import Dropout, DropPath
from attnjax.training.optimizer import decay_mask

# Branches with 16 and 4 patches of images of 8x8 and 4x4 pixels.
TINY = dict(patch_sizes=(2, 2), image_scales=(1.0, 0.5), widths=(8, 12), stages=1, num_heads=2, mlp_ratio=2.0)
IMAGE = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)


def tiny(**fields):
    return CrossViT(num_classes=3, **(TINY | fields))


def init(model, *image):
    return jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((2, *image), jnp.float32))


def random_params(model, image=IMAGE):
    """Returns random parameters, so that none is 0 or 1."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: 0.3 * rng.normal(size=x.shape).astype(np.float32), init(model, *image.shape[1:]))


@pytest.mark.parametrize(
    ("size", "parameters", "giga"),
    [
        ("tiny", 7_014_800, 1.563),
        ("9", 8_553_296, 1.841),
        ("small", 26_856_272, 5.616),
        ("15", 27_528_464, 5.791),
        ("18", 43_271_408, 9.031),
        ("base", 105_025_232, 21.191),
    ],
)
def test_counts_are_timms(size, parameters, giga):
    model = CrossViT(num_classes=1000, **CROSSVIT_SIZES[size])
    assert count(init(model, 240, 240, 3)["params"]) == parameters
    assert multiply_adds(model, (240, 240, 3)) / 1e9 == pytest.approx(giga, abs=5e-4)


@pytest.mark.parametrize(("size", "pixels", "grids"), [("mini-28", 28, [49, 16]), ("mini-32", 32, [64, 16])])
def test_small_sizes_are_whole_patches(size, pixels, grids):
    params = init(CrossViT(num_classes=10, **CROSSVIT_SIZES[size]), pixels, pixels, 1)["params"]
    assert [params[f"branch{i + 1}"]["positions"]["embedding"].shape[1] - 1 for i in range(2)] == grids


def test_output_is_float32_under_bfloat16():
    for classes, width in ((7, 7), (0, 288)):
        model = CrossViT(num_classes=classes, **CROSSVIT_SIZES["tiny"], dtype="bfloat16")
        image = jax.ShapeDtypeStruct((2, 120, 240, 3), jnp.float32)
        output, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), image)
        assert (output.shape, output.dtype) == ((2, width), jnp.float32)
        assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


def test_each_branch_sees_the_image_at_its_scale():
    sizes = CROSSVIT_SIZES["9"]
    scales = sizes["patch_sizes"], sizes["image_scales"]
    assert branch_grids((240, 240), *scales) == [(20, 20), (14, 14)]
    assert branch_grids((360, 120), *scales) == [(30, 10), (21, 7)]
    assert branch_grids((408, 408), (12, 16), (1.0, 384 / 408)) == [(34, 34), (24, 24)]
    with pytest.raises(UserError, match=r"branch 2 of crossvit sees images at 0.9333 of their size: .* 235x235 is not"):
        branch_grids((252, 252), *scales)


def test_an_image_of_the_right_size_is_left_as_it_is_and_a_flat_one_stays_flat():
    assert resize_images(IMAGE, (8, 8)) is IMAGE
    np.testing.assert_allclose(resize_images(np.full((1, 8, 6, 2), 0.7, np.float32), (5, 9)), 0.7, rtol=1e-6)
    row = np.arange(8, dtype=np.float32).reshape(1, 1, 8, 1)
    # Cubic interpolation is exact on lines.
    np.testing.assert_allclose(resize_images(row, (1, 4)).ravel()[1:-1], [2.5, 4.5], rtol=1e-6)
    np.testing.assert_allclose(resize_images(row.reshape(1, 8, 1, 1), (4, 1)).ravel()[1:-1], [2.5, 4.5], rtol=1e-6)


def make_reach(model):
    """Returns reach(layer, branch): the tokens of the branch on which the layer's class token depends.

    By gradients for the branch's table of positions, which is added to its tokens.
    """
    params = random_params(model)
    tables = [params["params"][f"branch{i}"]["positions"]["embedding"] for i in (1, 2)]

    def tokens(tables):
        changed = flatten_dict(params)
        for i, table in enumerate(tables, start=1):
            changed["params", f"branch{i}", "positions", "embedding"] = table
        _, state = model.apply(unflatten_dict(changed), IMAGE, capture_intermediates=True, mutable=["intermediates"])
        layers = {name: kept["__call__"][0] for name, kept in state["intermediates"].items() if "stage" in name}
        return {name: (x[:, 0] ** 2).sum() for name, x in layers.items()}

    gradients = jax.jit(jax.jacrev(tokens))(tables)
    return lambda layer, branch: np.abs(gradients[layer][branch - 1][0]).max(-1) > 0


def test_a_class_token_reads_the_other_branchs_patches_by_the_exchange_alone():
    reach = make_reach(tiny(depths=(1, 1)))
    for own, other in ((1, 2), (2, 1)):
        assert reach(f"stage1_fusion{own}", own).all() and reach(f"stage1_fusion{own}", other).all()
        assert reach(f"stage1_branch{own}_block1", own).all() and not reach(f"stage1_branch{own}_block1", other).any()


def test_the_exchange_reads_patches_and_not_the_other_class_token():
    reach = make_reach(tiny(depths=(1, 0)))  # no block mixes the tokens of branch 2 first
    found = reach("stage1_fusion1", 2)
    assert not found[0] and found[1:].all()


def test_patches_hear_of_the_other_branch_a_stage_later():
    model = tiny(stages=2, depths=(1, 1))
    params = random_params(model)

    @jax.jit
    def patches(params):
        _, state = model.apply(params, IMAGE, capture_intermediates=True, mutable=["intermediates"])
        return [state["intermediates"][f"stage{stage}_branch1_block1"]["__call__"][0][:, 1:] for stage in (1, 2)]

    changed = flatten_dict(params)
    path = ("params", "branch2", "positions", "embedding")
    changed[path] = 2 * changed[path]
    before, after = patches(params), patches(unflatten_dict(changed))
    np.testing.assert_array_equal(before[0], after[0])
    assert np.abs(before[1] - after[1]).max() > 1e-3


def test_both_directions_are_the_same_computation(apply):
    """Swapping the branches and the names of their weights does not change the logits."""
    fields = TINY | dict(stages=2, depths=(1, 2))
    mirrored = {name: value[::-1] if isinstance(value, tuple) else value for name, value in fields.items()}
    model, other = tiny(**fields), tiny(**mirrored)
    params = random_params(model)

    def renamed(path):
        return re.sub(r"(branch|fusion|final_norm|head)([12])", lambda m: m[1] + {"1": "2", "2": "1"}[m[2]], path)

    changed = {renamed(path): leaf for path, leaf in flatten_dict(params, sep="/").items()}
    logits = apply(model, params, IMAGE)
    np.testing.assert_allclose(logits, apply(other, unflatten_dict(changed, sep="/"), IMAGE), rtol=1e-5, atol=1e-6)
    assert np.abs(logits - apply(other, random_params(other), IMAGE)).max() > 1e-3


def test_logits_are_the_mean_of_the_heads():
    model = tiny(depths=(1, 1))
    params = random_params(model)
    capture = jax.jit(lambda *args: model.apply(*args, capture_intermediates=True, mutable=["intermediates"]))
    logits, state = capture(params, IMAGE)
    heads = [state["intermediates"][f"head{i}"]["__call__"][0] for i in (1, 2)]
    np.testing.assert_allclose(logits, (heads[0] + heads[1]) / 2, rtol=1e-6)
    assert np.abs(heads[0] - heads[1]).max() > 0.01


def test_attention_maps_come_out(apply):
    model = tiny(depths=(1, 2))
    _, state = apply(model, random_params(model), IMAGE, mutable="intermediates")
    maps = {name: found["attention"]["attention"][0] for name, found in state["intermediates"].items()}
    assert {name: x.shape[1:] for name, x in maps.items()} == {
        "stage1_branch1_block1": (2, 17, 17),
        "stage1_branch2_block1": (2, 5, 5),
        "stage1_branch2_block2": (2, 5, 5),
        "stage1_fusion1": (2, 1, 5),  # from the first branch's class token to the second's patches
        "stage1_fusion2": (2, 1, 17),
    }
    for x in maps.values():
        np.testing.assert_allclose(x.sum(-1), 1, rtol=1e-5)


def test_drop_path_rises_linearly_over_the_deeper_branch():
    rates = []

    def note(call, args, kwargs, context):
        if isinstance(context.module, DropPath):
            rates.append((context.module.scope.parent.name, round(context.module.rate, 9)))
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        init(tiny(stages=2, depths=(1, 3), drop_path=0.5), 8, 8, 3)
    assert dict(rates) == {
        "stage1_branch1_block1": 0.0,
        "stage1_branch2_block1": 0.0,
        "stage1_branch2_block2": 0.1,
        "stage1_branch2_block3": 0.2,
        "stage1_fusion1": 0.2,
        "stage1_fusion2": 0.2,
        "stage2_branch1_block1": 0.3,
        "stage2_branch2_block1": 0.3,
        "stage2_branch2_block2": 0.4,
        "stage2_branch2_block3": 0.5,
        "stage2_fusion1": 0.5,
        "stage2_fusion2": 0.5,
    }


def test_dropout_is_where_ibm_has_it():
    rates = {}

    def note(call, args, kwargs, context):
        if isinstance(context.module, Dropout) and context.module.rate:
            rates["/".join(context.module.scope.path)] = context.module.rate
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        init(tiny(depths=(1, 0), dropout=0.1, attention_dropout=0.2), 8, 8, 3)
    block, fusions = "stage1_branch1_block1", ("stage1_fusion1", "stage1_fusion2")
    dropout = ["branch1", "branch2", block, block, f"{block}/mlp", *fusions]
    attention = [f"{layer}/attention" for layer in (block, *fusions)]
    found = [(path.rsplit("/", 1)[0], rate) for path, rate in rates.items()]
    assert sorted(found) == sorted([(path, 0.1) for path in dropout] + [(path, 0.2) for path in attention])


def test_dropout_acts_in_training_only(apply):
    model, without = (tiny(depths=(1, 1), dropout=rate, attention_dropout=rate, drop_path=rate) for rate in (0.5, 0.0))
    params = random_params(model)
    keys = jax.random.split(jax.random.key(0), 2)
    trained = jax.jit(jax.vmap(lambda key: model.apply(params, IMAGE, train=True, rngs={"dropout": key})))(keys)
    assert not np.allclose(*trained)
    np.testing.assert_array_equal(apply(model, params, IMAGE), apply(without, params, IMAGE))


def test_another_kernel_computes_the_same(apply):
    model, other = (tiny(depths=(1, 0), attention_kernel=kernel) for kernel in ("head_major", "xla"))
    params = random_params(model)
    np.testing.assert_allclose(apply(model, params, IMAGE), apply(other, params, IMAGE), rtol=1e-5, atol=1e-6)


def test_gradients_reach_all_and_only_kernels_decay():
    model = tiny(depths=(1, 1))
    params = random_params(model)
    gradient = jax.jit(jax.grad(lambda params: (model.apply(params, IMAGE) ** 2).sum()))(params)
    for path, leaf in flatten_dict(gradient, sep="/").items():
        assert np.isfinite(leaf).all()
        assert "key/bias" in path or np.abs(leaf).max() > 1e-6, path
    for path, decays in flatten_dict(decay_mask(params["params"]), sep="/").items():
        assert decays == path.endswith("kernel"), path


def test_starts_as_timms_and_the_small_ones_as_xavier():
    model = CrossViT(num_classes=50, **(TINY | dict(widths=(64, 128), depths=(1, 0))))
    params = jax.jit(model.init)(jax.random.key(0), IMAGE)["params"]
    for path, leaf in flatten_dict(params, sep="/").items():
        if path.endswith(("kernel", "embedding", "class_token")) and "patch_embedding" not in path:
            assert abs(leaf.mean()) < 0.008 and 0.016 < leaf.std() < 0.024, path
    tokens = np.zeros((1, 3, 64), np.float32), np.zeros((1, 2, 128), np.float32)
    small = jax.jit(lambda key: Fusion(num_heads=2).init(key, *tokens, train=False))(jax.random.key(0))
    kernel = small["params"]["project"]["linear"]["kernel"]
    assert kernel.shape == (64, 128) and abs(kernel.std() - (2 / (64 + 128)) ** 0.5) < 0.004


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(widths=(8,)), r"crossvit has widths \(8,\): it needs two entries, one per branch"),
        (dict(depths=(1, 2, 0)), r"crossvit has depths \(1, 2, 0\): it needs two"),
        (dict(image_scales=(1.0, 0.0)), r"crossvit has image_scales \(1.0, 0.0\): both should be positive"),
        (dict(stages=0), r"at least 1 stage and 1 block in it, got 0 and \(1, 4\)"),
        (dict(depths=(0, 0)), r"at least 1 stage and 1 block in it"),
        (dict(depths=(-1, 1)), r"at least 1 stage and 1 block in it"),
        (dict(num_heads=3), "attention width 8 is not divisible by 3 heads"),
        (dict(patch_sizes=(3, 2)), "branch 1 of crossvit sees images at 1 of their size: image size 8x8 is not divisi"),
        (dict(attention_kernel="flash"), "unknown attention kernel 'flash'"),
    ],
)
def test_bad_fields_are_one_line(fields, message):
    with pytest.raises(UserError, match=message) as error:
        init(tiny(**fields), 8, 8, 3)
    assert "\n" not in str(error.value)


def test_registered():
    assert isinstance(models.build(models.fields("crossvit", "9"), num_classes=3), CrossViT)
    with pytest.raises(UserError, match="unknown size '12' of crossvit, "):
        models.fields("crossvit", "12")
