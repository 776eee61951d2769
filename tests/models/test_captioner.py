import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from attnjax import config as config_lib
from attnjax import models
from attnjax.errors import UserError
from attnjax.nn.blocks import DecoderBlock
from attnjax.nn.masks import Mask, causal_mask
from attnjax.objectives.sequence import SequenceObjective
from attnjax.training import state
from attnjax.training.optimizer import make_optimizer
from attnjax.training.step import TrainStep

B, S, T, V, WIDTH = 3, 6, 5, 11, 8
ENCODERS = {
    "vit": dict(patch_size=4, width=6, depth=1, num_heads=2, mlp_dim=8),
    "vit-average": dict(patch_size=4, width=WIDTH, depth=1, num_heads=2, mlp_dim=8, pool="average"),
    "swin": dict(patch_size=4, width=4, depths=(1, 1), num_heads=(1, 2), window=2),
    "resnet": dict(blocks=(1, 1), features=(4, 6)),
}
TEXT = dict(width=WIDTH, mlp_dim=16, num_heads=2, encoder_depth=1, decoder_depth=1, max_length=16, dropout=0.0)
# How a captioner reads its inputs -> the text's cross_attention
KINDS = {
    "captions": ("plain",),
    "concatenated": ("plain",),
    "sequential": ("plain", "gated"),
}


def make_model(encoder="vit", kind="captions", **text):
    parts = {
        "encoder": models.fields(encoder.partition("-")[0], **ENCODERS[encoder]),
        "text": models.fields("transformer", **{**TEXT, "cross_attention": KINDS[kind], **text}),
    }
    return models.build_captioner(parts, source_vocabulary=V, target_vocabulary=V)


def make_batch(kind="captions", seed=0):
    """Returns targets (B, T + 1) with padding, images of 8x16 pixels, and sources if the kind has them."""
    rng = np.random.default_rng(seed)
    target, source = rng.integers(3, V, (B, T + 1)), rng.integers(3, V, (B, S))
    target[:, 0] = 1
    for row, cut in enumerate((0, 2, 1)):
        target[row, T + 1 - cut :] = source[row, S - cut :] = 0
    image = rng.normal(size=(B, 8, 16, 3)).astype(np.float32)
    batch = {"target": target.astype(np.int32), "image": image}
    return batch if kind == "captions" else batch | {"source": source.astype(np.int32)}


def inputs(batch):
    return [batch["image"], batch.get("source")]


def shapes_of(model, batch):
    return jax.eval_shape(lambda: model.init(jax.random.key(0), batch["target"][:, :-1], *inputs(batch)))


def make_variables(model, batch, gate=0.0):
    """Returns variables that are random, including batch statistics, except for the gates."""
    rng = np.random.default_rng(1)

    def fill(path, struct):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if "gate" in name:
            return np.float32(gate)
        noise = rng.normal(size=struct.shape).astype(np.float32)
        return np.exp(0.3 * noise) if name.endswith(("scale", "var")) else 0.5 * noise

    return jax.tree_util.tree_map_with_path(fill, shapes_of(model, batch))


def logits(model, variables, batch, **changes):
    batch = batch | changes
    return jax.jit(model.apply)(variables, batch["target"][:, :-1], *inputs(batch))


def task_of(model, batch):
    return SequenceObjective(model, reads=tuple(name for name in ("source", "image") if name in batch))


# What it computes


@pytest.mark.parametrize(("encoder", "kind"), [("vit", "captions"), ("resnet", "concatenated"), ("swin", "sequential")])
def test_stepping_with_a_cache_equals_reading_at_once_and_all_inputs_are_read(encoder, kind):
    model, batch, other = make_model(encoder, kind), make_batch(kind), make_batch(kind, seed=1)
    variables = make_variables(model, batch, gate=0.7)
    expected = logits(model, variables, batch)
    assert expected.shape == (B, T, V) and expected.dtype == jnp.float32
    for name in {"image", "source"} & batch.keys():
        assert np.abs(logits(model, variables, batch, **{name: other[name]}) - expected).max() > 1e-2

    cache = jax.jit(lambda *args: model.apply(*args, length=T + 2, method="start_cache"))(variables, *inputs(batch))
    assert all(leaf.shape[0] == B for leaf in jax.tree.leaves(cache))
    step = jax.jit(lambda *args: model.apply(*args, method="step"))
    # A ResNet has no final norm: its tokens reach 150 here and the logits of the attention to them 500, where float32
    # rounds by 3e-5. That changes the output by some 1e-5 of its size, as one ulp in the tokens does. The encoder isn't
    # the cause: its tokens are the same bits for both, and with the adapter's kernel / 64 both agree to 2e-6.
    atol = 5e-5 * np.abs(expected).max() if encoder == "resnet" else 1e-5
    for position in range(T):
        found, cache = step(variables, cache, batch["target"][:, position], position)
        np.testing.assert_allclose(found, expected[:, position], atol=atol)


def test_padding_of_the_source_is_not_seen_beside_the_image():
    model, batch = make_model("vit", "concatenated"), make_batch("concatenated")
    variables = make_variables(model, batch)
    longer = logits(model, variables, batch, source=np.pad(batch["source"], ((0, 0), (0, 3))))
    np.testing.assert_allclose(longer, logits(model, variables, batch), atol=1e-5)


def test_a_shut_gate_hides_the_image_and_learns_to_open():
    model, batch = make_model("vit", "sequential"), make_batch("sequential")
    task, other = task_of(model, batch), batch | {"image": make_batch(seed=1)["image"]}
    gradient = jax.jit(jax.value_and_grad(lambda params, batch: task.evaluate(params, {}, batch)["loss"][0]))
    shut, opened = (make_variables(model, batch, gate)["params"] for gate in (0.0, 0.7))
    loss, found = gradient(shut, batch)
    assert loss == gradient(shut, other)[0]
    assert abs(gradient(opened, batch)[0] - gradient(opened, other)[0]) > 1e-2
    gates = [x for path, x in flatten_dict(found).items() if path[-1].startswith("gate")]
    assert len(gates) == 1 and abs(gates[0]) > 1e-3
    assert not any(jax.tree.map(np.any, jax.tree.leaves(found["encoder"])))  # the loss does not depend on it yet


def test_rows_of_padding_count_for_nothing_and_have_finite_gradients():
    model, batch = make_model("vit", "sequential"), make_batch("sequential")
    variables, task = make_variables(model, batch, gate=0.7), task_of(model, batch)
    gradient = jax.jit(jax.value_and_grad(lambda params, batch: task.evaluate(params, {}, batch)["loss"][0]))
    used = {name: np.concatenate([array, array[:1]]) for name, array in batch.items()}
    used["target"][B:] = 0
    empty = {name: np.concatenate([array, 0 * array[:1]]) for name, array in batch.items()}
    expected, found = (gradient(variables["params"], rows) for rows in (used, empty))
    assert found[0] > 1 and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, expected)


def test_labels_are_the_target_shifted_once():
    model, batch = make_model(), make_batch()
    variables = make_variables(model, batch)
    log_p = np.asarray(jax.nn.log_softmax(logits(model, variables, batch)))
    expected, tokens = 0.0, 0
    for row in range(B):
        for t in range(T):
            if batch["target"][row, t + 1] != 0:
                expected, tokens = expected - log_p[row, t, batch["target"][row, t + 1]], tokens + 1
    total, (weight, _, _) = jax.jit(task_of(model, batch).loss)(variables["params"], {}, batch, jax.random.key(0))
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    assert weight == tokens == B * T - 3


# Memories


@pytest.mark.parametrize("cross_attention", [("plain",), ("plain", "gated")], ids=str)
def test_a_row_that_may_look_at_nothing_gets_nothing(cross_attention):
    """The output is zero, not the mean of the masked memory."""
    block = DecoderBlock(WIDTH, 2, 16, cross_attention=cross_attention)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, T, WIDTH)).astype(np.float32)
    memories = [rng.normal(size=(2, S, WIDTH)).astype(np.float32) for _ in cross_attention]
    masks = [None] * (len(cross_attention) - 1) + [Mask(lengths=jnp.array([S, 0]))]

    @jax.jit
    def call(params, memories):
        pairs = list(zip(memories, masks, strict=True))
        return block.apply(params, x, pairs, mask=causal_mask(), train=False)

    @jax.jit
    def stepwise(params, memories):
        cache, found = block.apply(params, memories, T, method="start_cache"), []
        for t in range(T):
            y, cache = block.apply(params, x[:, t : t + 1], cache, t, memory_masks=masks, method="step")
            found.append(y)
        return jnp.concatenate(found, 1)

    pairs = [(memory, None) for memory in memories]
    start = jax.jit(lambda: block.init(jax.random.key(0), x, pairs, mask=causal_mask(), train=False))()
    gates = [value for name, value in start["params"].items() if name.startswith("gate")]
    assert gates == [0.0] * cross_attention.count("gated")
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), start)
    others = [*memories[:-1], memories[-1] + 1]
    whole = call(params, memories)
    for compute in (call, stepwise):
        one, other = compute(params, memories), compute(params, others)
        np.testing.assert_allclose(one, whole, atol=1e-5)
        np.testing.assert_array_equal(one[1], other[1])
        assert np.abs(one[0] - other[0]).max() > 1e-3
    gradient = jax.jit(jax.grad(lambda memory: call(params, [*memories[:-1], memory])[1].sum()))(memories[-1])
    np.testing.assert_array_equal(gradient, 0)


# Frozen parts


def test_a_frozen_encoder_keeps_every_bit():
    batch = make_batch()
    options = config_lib.captioning().optimizer
    options.weight_decay, options.freeze = 0.1, ("encoder",)
    model = make_model("resnet")
    free, optimizer = task_of(model, batch), make_optimizer(options, lambda step: 0.1)
    task = dataclasses.replace(free, frozen=options.freeze)
    variables = make_variables(model, batch)
    params, key = variables.pop("params"), jax.random.PRNGKey(0)
    start = state.TrainState(jnp.zeros((), jnp.int32), params, variables, optimizer.init(params), None, key)
    after, _ = jax.jit(TrainStep(task, optimizer, lambda step: 0.1))(start, batch)
    jax.tree.map(np.testing.assert_array_equal, after.params["encoder"], params["encoder"])
    jax.tree.map(np.testing.assert_array_equal, after.model_state, variables)
    for part in ("text", "adapter"):
        old = jax.tree.leaves(params[part])
        assert all((a != b).any() for a, b in zip(jax.tree.leaves(after.params[part]), old, strict=True))

    _, (_, _, model_state) = jax.jit(free.loss)(params, variables, batch, key)
    changed = [(a != b).any() for a, b in zip(*map(jax.tree.leaves, (model_state, variables)), strict=True)]
    assert changed and all(changed)


def test_empty_rows_and_unreadable_images_change_nothing():
    """Not the loss, nor batch statistics, which mix rows; a masked row counts as little as an empty one."""
    batch = make_batch()
    model = make_model("resnet")
    task, variables = task_of(model, batch), make_variables(model, batch)
    params, key = variables.pop("params"), jax.random.PRNGKey(0)
    masked = {name: np.concatenate([x, x[:2]]) for name, x in make_batch(seed=1).items()}
    masked["target"][3:] = 0
    longer = {name: np.concatenate([batch[name], masked[name]]) for name in batch}
    longer["mask"] = np.array([True] * 3 + [False] * 3 + [True] * 2)  # the last two have no text
    loss = jax.jit(task.loss)
    alone, (weight, _, state) = loss(params, variables, batch, key)
    together, (same_weight, _, same_state) = loss(params, variables, longer, key)
    assert weight == same_weight
    np.testing.assert_allclose(alone, together, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), state, same_state)
    measured, expected = (task.evaluate(params, variables, rows)["loss"] for rows in (longer, batch))
    np.testing.assert_allclose(measured, expected, rtol=1e-5)


def test_what_is_frozen_must_be_there():
    options = config_lib.captioning().optimizer
    options.freeze = ("encodr",)
    optimizer = make_optimizer(options, optax.constant_schedule(0.1))
    with pytest.raises(UserError, match=r"optimizer\.freeze names 'encodr', did you mean 'encoder'"):
        optimizer.init({"encoder": jnp.ones(2), "text": jnp.ones(2)})


# What does not fit


@pytest.mark.parametrize(("encoder", "adapted"), [("vit", True), ("vit-average", False), ("swin", False)])
def test_an_adapter_only_where_widths_differ(encoder, adapted):
    assert ("adapter" in shapes_of(make_model(encoder), make_batch())["params"]) == adapted


@pytest.mark.parametrize(
    ("kind", "cross_attention", "message"),
    [
        ("captions", ("plain", "gated"), "without a source there is one memory"),
        ("captions", (), "without a source there is one memory"),
        ("sequential", ("gated",), r"should be \('plain',\), which reads both as one sequence, or two entries"),
        ("sequential", ("plain", "plain", "gated"), "or two entries"),
        ("sequential", ("plain", "gatd"), "unknown cross_attention 'gatd', did you mean 'gated'"),
    ],
)
def test_memories_and_cross_attention_must_agree(kind, cross_attention, message):
    with pytest.raises(UserError, match=message):
        shapes_of(make_model(kind=kind, cross_attention=cross_attention), make_batch(kind))


def test_parts_that_cannot_be_joined_are_refused():
    text, sizes = models.fields("transformer", **TEXT), dict(source_vocabulary=V, target_vocabulary=V)
    for encoder, message in [("lenet", "features of LeNet: it has no map"), ("mlp", "features of MLP")]:
        with pytest.raises(UserError, match=message):
            models.build_captioner({"encoder": models.fields(encoder), "text": text}, **sizes)
    parts = {"encoder": models.fields("vit", **ENCODERS["vit"]), "text": models.fields("rnn")}
    with pytest.raises(UserError, match=r"model\.text should be a transformer, not 'RNN'"):
        models.build_captioner(parts, **sizes)
