"""Frozen parts compute as in evaluation: no dropout, no new batch statistics, no gradients."""

import dataclasses

import jax
import numpy as np
import pytest

from attnjax import models
from attnjax.errors import UserError
from attnjax.objectives.classification import ClassificationObjective

SMALL = {
    "resnet": dict(blocks=(1, 1), features=(4, 8), stem="imagenet", project=True),
    "vit": dict(patch_size=4, width=8, depth=2, num_heads=2, mlp_dim=8, dropout=0.5, drop_path=0.5),
}
BATCH = {
    "image": np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype(np.float32),
    "label": np.array([0, 1, 2, 1]),
    "mask": np.array([True, True, True, False]),
}


def make(name, **fields):
    """Returns an objective and random variables."""
    objective = ClassificationObjective(models.build(models.fields(name, **SMALL[name], **fields), num_classes=3))
    params, model_state = objective.init(jax.random.key(0), jax.eval_shape(lambda: BATCH))
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda x: x + rng.normal(size=x.shape).astype(np.float32) / 4, params)
    return objective, params, model_state


def train(objective, params, model_state):
    """Returns the loss of a training step, its gradients and the new statistics."""
    step = jax.jit(jax.value_and_grad(objective.loss, has_aux=True))
    (loss, (_, _, new)), gradients = step(params, model_state, BATCH, jax.random.key(2))
    return float(loss), gradients, new


@pytest.mark.parametrize(("name", "remat"), [("resnet", "none"), ("vit", "none"), ("vit", "full")])
def test_with_all_but_the_head_frozen_the_features_are_those_of_evaluation(name, remat):
    objective, params, model_state = make(name, remat=remat)
    frozen = dataclasses.replace(objective, frozen=tuple(params.keys() - {"head"}))
    loss, gradients, new = train(frozen, params, model_state)
    np.testing.assert_allclose(loss, objective.evaluate(params, model_state, BATCH)["loss"][0], rtol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, new, model_state)
    moves = {part: any(x.any() for x in jax.tree.leaves(gradient)) for part, gradient in gradients.items()}
    assert moves == {part: part == "head" for part in params}
    free_loss, _, moved = train(objective, params, model_state)
    assert abs(free_loss - loss) > 1e-3
    assert all((a != b).any() for a, b in zip(*map(jax.tree.leaves, (moved, model_state)), strict=True))


def test_dropout_after_a_part_that_is_trained_stays_on():
    objective, params, model_state = make("vit")
    losses = [
        train(dataclasses.replace(objective, frozen=names), params, model_state)[0]
        for names in ((), ("block1",), ("patch_embedding", "block0"), ("patch_embedding", "block0", "block1"))
    ]
    # The embeddings' dropout is off once the patch embedding is frozen, each block's once the block is.
    assert len(set(losses)) == 4


@pytest.mark.parametrize("remat", ["none", "full"])
def test_only_the_statistics_of_frozen_parts_stay(remat):
    objective, params, model_state = make("resnet", remat=remat)
    _, _, new = train(dataclasses.replace(objective, frozen=("stage2_block1", "stem_norm")), params, model_state)
    same = {
        part: all((a == b).all() for a, b in zip(*map(jax.tree.leaves, (new["batch_stats"][part], old)), strict=True))
        for part, old in model_state["batch_stats"].items()
    }
    assert same == {part: part in ("stage2_block1", "stem_norm") for part in same}


def test_scanned_blocks_cannot_be_frozen():
    model = models.build(models.fields("vit", **SMALL["vit"], scan=True), num_classes=3)
    with pytest.raises(UserError, match=r"optimizer\.freeze=\('block0',\) needs model\.scan=False"):
        ClassificationObjective(model, frozen=("block0",))
