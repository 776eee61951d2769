"""The positions of the Vision Transformer: sizes, what they distinguish, gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import models
from attnjax.errors import UserError
from attnjax.inspection.parameters import count
from attnjax.models.vit import POSITIONS, ViT
from attnjax.nn.attention import MultiHeadAttention
from attnjax.nn.positions import LearnedPositions2D
from attnjax.training.optimizer import decay_mask

SMALL = dict(num_classes=3, patch_size=2, width=8, depth=2, num_heads=2, mlp_dim=16)
ROWS, COLUMNS = 3, 4
IMAGES = np.random.default_rng(0).normal(size=(2, 2 * ROWS, 2 * COLUMNS, 3)).astype(np.float32)


def random_params(module, *inputs):
    """Returns random variables, so that none is 0 or 1."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    return jax.tree.map(lambda x: 0.6 * rng.normal(size=x.shape).astype(np.float32), shapes)


def flat(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


@pytest.mark.parametrize(
    ("position", "pool", "parameters"),
    [
        ("none", "token", 0),
        ("learned", "token", 197 * 768),
        ("learned", "average", 196 * 768),
        ("learned_2d", "token", (14 + 14) * 384 + 768),
        ("learned_2d", "average", (14 + 14) * 384),
        ("relative", "token", 12 * 12 * 27 * 27),  # per block and head
        ("relative", "average", 12 * 12 * 27 * 27),
    ],
)
def test_counts(position, pool, parameters):
    model = models.build(models.fields("vit", "B/16", position=position, pool=pool), num_classes=1000)
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    without = 86_567_656 - 197 * 768 - (768 if pool == "average" else 0)  # the class token
    assert count(shapes) == without + parameters
    assert not any(decays for path, decays in flat(decay_mask(shapes)).items() if "positions" in path)


def shuffled(images, order):
    """Returns images with their patches in another order."""
    patches = images.reshape(len(images), ROWS, 2, COLUMNS, 2, -1).swapaxes(2, 3)
    patches = patches.reshape(len(images), ROWS * COLUMNS, 2, 2, -1)[:, order]
    return patches.reshape(len(images), ROWS, COLUMNS, 2, 2, -1).swapaxes(2, 3).reshape(images.shape)


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("pool", ["token", "average"])
def test_without_positions_the_order_of_patches_is_not_seen(position, pool):
    model = ViT(**SMALL, position=position, pool=pool)
    params = random_params(model, IMAGES)
    order = np.random.default_rng(1).permutation(ROWS * COLUMNS)
    both = np.concatenate([IMAGES, shuffled(IMAGES, order)])
    one, other = np.split(jax.jit(model.apply)(params, both), 2)
    difference = np.abs(one - other).max()
    assert difference < 1e-5 if position == "none" else difference > 1e-3


@pytest.mark.parametrize(
    ("position", "pool", "reached"),
    [
        ("learned", "token", ["positions/embedding"]),
        ("learned_2d", "token", ["positions/class_token", "positions/columns", "positions/rows"]),
        ("relative", "average", [f"block{i}/attention/relative_positions/embedding" for i in (0, 1)]),
        # Of the last block only the class token is read.
        ("relative", "token", ["block0/attention/relative_positions/embedding"]),
    ],
)
def test_gradients_reach_all_positions(position, pool, reached):
    model = ViT(**SMALL, position=position, pool=pool)
    params = random_params(model, IMAGES)
    gradient = jax.jit(jax.grad(lambda params: (model.apply(params, IMAGES) ** 2).sum()))(params)
    tables = {path: np.abs(leaf) for path, leaf in flat(gradient["params"]).items() if "positions/" in path}
    assert [path for path, leaf in tables.items() if (leaf > 0).all()] == reached
    assert all(np.isfinite(leaf).all() for leaf in tables.values())


def test_learned_2d_is_a_vector_of_the_row_and_one_of_the_column():
    x = jnp.zeros((2, 1 + ROWS * COLUMNS, 7))
    positions = LearnedPositions2D()
    params = positions.init(jax.random.key(0), x, (ROWS, COLUMNS))
    table = params["params"]
    assert {name: leaf.shape for name, leaf in table.items()} == {
        "rows": (ROWS, 3), "columns": (COLUMNS, 4), "class_token": (1, 7),
    }  # fmt: skip
    out = positions.apply(params, x, (ROWS, COLUMNS))
    np.testing.assert_array_equal(out[:, :1], np.broadcast_to(table["class_token"], (2, 1, 7)))
    for row in range(ROWS):
        for column in range(COLUMNS):
            expected = np.concatenate([table["rows"][row], table["columns"][column]])
            np.testing.assert_array_equal(out[1, 1 + row * COLUMNS + column], expected)


@pytest.mark.parametrize("before", [0, 1])
def test_relative_positions_bias_pairs_of_patches_by_their_distance(before, apply):
    """With zero queries the attention weights are the softmax of the biases alone."""
    x = jnp.ones((1, before + ROWS * COLUMNS, 8))
    attention = MultiHeadAttention(num_heads=2, features=8, relative_grid=(ROWS, COLUMNS))
    params = jax.jit(attention.init)(jax.random.key(0), x)["params"]
    table = np.random.default_rng(0).normal(size=(2 * ROWS - 1, 2 * COLUMNS - 1, 2)).astype(np.float32)
    params |= {"query": jax.tree.map(jnp.zeros_like, params["query"]), "relative_positions": {"embedding": table}}
    _, state = apply(attention, {"params": params}, x, mutable="intermediates")
    (weights,) = state["intermediates"]["attention"]
    logits = np.zeros((2, *weights.shape[2:]))
    for query in range(ROWS * COLUMNS):
        for key in range(ROWS * COLUMNS):
            dy, dx = query // COLUMNS - key // COLUMNS, query % COLUMNS - key % COLUMNS
            logits[:, before + query, before + key] = table[ROWS - 1 + dy, COLUMNS - 1 + dx]
    np.testing.assert_allclose(weights[0], jax.nn.softmax(logits), atol=1e-6)


def test_an_unknown_position_is_named():
    with pytest.raises(UserError, match="unknown position of vit 'relativ', did you mean 'relative'"):
        jax.eval_shape(ViT(**SMALL, position="relativ").init, jax.random.key(0), IMAGES)
