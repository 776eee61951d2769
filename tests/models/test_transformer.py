import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.errors import UserError
from attnjax.inspection.parameters import count
from attnjax.models.transformer import TRANSFORMER_SIZES, Transformer
from attnjax.nn.positions import sinusoids

B, S, T, V = 3, 7, 5, 11
SMALL = dict(width=8, mlp_dim=16, num_heads=2, encoder_depth=2, decoder_depth=2, max_length=16)


def parameters(vocabularies, size, **changes):
    model = Transformer(*vocabularies, **{**TRANSFORMER_SIZES[size], **changes})
    tokens = jax.ShapeDtypeStruct((1, 4), jnp.int32)
    return count(jax.eval_shape(model.init, jax.random.key(0), tokens, tokens))


@pytest.mark.parametrize(
    ("vocabularies", "size", "changes", "expected"),
    [
        ((37_000, 37_000), "base", {}, 63_082_496),
        ((32_768, 32_768), "base", {}, 60_915_712),
        ((32_000, 32_000), "base", {"norm": "pre"}, 60_524_544),
        ((37_000, 37_000), "big", {}, 214_245_376),
        ((32_768, 32_768), "big", {}, 209_911_808),
        ((32_000, 32_000), "big", {}, 209_125_376),
        ((8_848, 6_632), "iwslt", {"tie": "decoder"}, 39_469_056),
        ((9_715, 9_715), "tiny", {}, 1_325_056 + 9_715 * 128),
        ((37_000, 37_000), "base", {"output_bias": True}, 63_082_496 + 37_000),
    ],
)
def test_counts(vocabularies, size, changes, expected):
    assert parameters(vocabularies, size, **changes) == expected


@pytest.mark.parametrize(
    ("changes", "difference", "millions"),
    [
        ({"key_size": 64}, 0, 65),
        ({"key_size": 16}, -18 * 2 * (512 + 1) * 8 * 48, 58),  # queries and keys of 18 attention layers
        ({"key_size": 32}, -18 * 2 * (512 + 1) * 8 * 32, 60),
        ({"encoder_depth": 2, "decoder_depth": 2}, -29_425_664, 36),
        ({"encoder_depth": 4, "decoder_depth": 4}, -14_712_832, 50),
        ({"encoder_depth": 8, "decoder_depth": 8}, 14_712_832, 80),
        ({"mlp_dim": 1024}, -12 * 1024 * (2 * 512 + 1), 53),
        ({"mlp_dim": 4096}, 12 * 2048 * (2 * 512 + 1), 90),
        ({"num_heads": 1}, 0, 65),
        ({"num_heads": 32}, 0, 65),
        ({"positions": "learned"}, 2 * 1024 * 512, 65),
    ],
)
def test_table_3_counts_by_their_difference_to_base(changes, difference, millions):
    """The paper does not give the vocabulary of its 65 million parameters, so only differences are comparable."""
    assert parameters((37_000, 37_000), "base", **changes) - 63_082_496 == difference
    if "positions" not in changes:
        assert abs(difference / 1e6 - (millions - 65)) < 1  # both of the paper's numbers are rounded


@pytest.mark.parametrize("form", ["interleaved", "concatenated", "fairseq"])
def test_sinusoids_are_the_published_formula(form):
    table, width = sinusoids(50, 12, form), 12
    for position in (0, 1, 17, 49):
        for i in range(width // 2):
            angle = (position + 2) / 10000 ** (i / 5) if form == "fairseq" else position / 10000 ** (2 * i / width)
            sine, cosine = (2 * i, 2 * i + 1) if form == "interleaved" else (i, i + 6)
            np.testing.assert_allclose(table[position, [sine, cosine]], [np.sin(angle), np.cos(angle)], atol=1e-7)


def sentences(rng, length):
    tokens = rng.integers(3, V, size=(B, length))
    for row, end in enumerate((length, length - 2, length - 1)):
        tokens[row, end:] = 0
    return jnp.asarray(tokens, jnp.int32)


@pytest.fixture(
    scope="module",
    params=[("post", "interleaved", "all", 3), ("pre", "learned", "decoder", 0), ("post", "fairseq", "none", 6)],
)
def model(request):
    norm, positions, tie, key_size = request.param
    return Transformer(V, V, norm=norm, positions=positions, tie=tie, key_size=key_size, **SMALL)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    return sentences(rng, S), sentences(rng, T)


@pytest.fixture(scope="module")
def params(model, batch):
    return jax.jit(model.init)(jax.random.key(0), *batch)


def test_logits_depend_on_the_past_only(model, batch, params):
    """Tests causality with gradients with respect to the embedded target."""
    source, target = batch
    shift = jnp.zeros((B, T, SMALL["width"]))

    def logits(shift):
        def add_shift(call, args, kwargs, context):
            y = call(*args, **kwargs)
            embedded = context.module.name == "target_positions" and context.method_name == "__call__"
            return y + shift if embedded else y

        with nn.intercept_methods(add_shift):
            return model.apply(params, source, target)[0]

    jacobian = np.abs(jax.jit(jax.jacobian(logits))(shift)).sum((1, 4))[:, 0]  # (T of the logits, T of the input)
    np.testing.assert_array_equal(np.triu(jacobian, 1), 0)
    assert (np.diag(jacobian) > 0).all() and jacobian[-1, 0] > 0


def test_padding_is_not_seen(model, batch, params, apply):
    source, target = batch
    logits = apply(model, params, source, target)
    longer = jnp.pad(source, ((0, 0), (0, 4)))
    np.testing.assert_allclose(apply(model, params, longer, target), logits, atol=1e-5)
    alone = apply(model, params, source[1:2, : S - 2], target[1:2])
    np.testing.assert_allclose(alone, logits[1:2], atol=1e-5)


def test_stepping_with_a_cache_equals_reading_at_once(model, batch, params, apply):
    source, target = batch
    expected = apply(model, params, source, target)
    cache = apply(model, params, source, length=9, method="start_cache")
    assert all(leaf.shape[0] == B for leaf in jax.tree.leaves(cache))
    for position in range(T):
        logits, cache = apply(model, params, cache, target[:, position], position, method="step")
        np.testing.assert_allclose(logits, expected[:, position], atol=1e-5)


def test_an_output_bias_is_zero_at_first_and_added_to_the_logits(model, batch, params, apply):
    biased, bias = model.clone(output_bias=True), jnp.arange(V, dtype=jnp.float32)
    fresh = jax.jit(biased.init)(jax.random.key(0), *batch)["params"]
    assert fresh["logits_bias"].tolist() == [0] * V
    np.testing.assert_array_equal(apply(biased, {"params": fresh}, *batch), apply(model, params, *batch))
    changed = {"params": fresh | {"logits_bias": bias}}
    expected = apply(model, params, *batch) + bias
    np.testing.assert_allclose(apply(biased, changed, *batch), expected, atol=1e-6)
    cache = apply(biased, changed, batch[0], length=2, method="start_cache")
    logits, _ = apply(biased, changed, cache, batch[1][:, 0], 0, method="step")
    np.testing.assert_allclose(logits, expected[:, 0], atol=1e-5)


def test_packed_rows_equal_single_ones(model, batch, params, apply):
    source, target = batch
    first, second = slice(0, 1), slice(1, 2)
    packed_source = jnp.concatenate([source[first], source[second, : S - 2], jnp.zeros((1, 3), jnp.int32)], 1)
    packed_target = jnp.concatenate([target[first], target[second, : T - 2]], 1)
    source_segments = jnp.array([[1] * S + [2] * (S - 2) + [0] * 3])
    target_segments = jnp.array([[1] * T + [2] * (T - 2)])
    positions = (
        jnp.array([[*range(S), *range(S - 2), 0, 0, 0]]),
        jnp.array([[*range(T), *range(T - 2)]]),
    )
    packed = apply(
        model,
        params,
        packed_source,
        packed_target,
        source_segments=source_segments,
        target_segments=target_segments,
        positions=positions,
    )
    single = apply(model, params, source, target)
    np.testing.assert_allclose(packed[0, :T], single[0], atol=1e-5)
    np.testing.assert_allclose(packed[0, T:], single[1, : T - 2], atol=1e-5)


def test_dropout_needs_training(model, batch, params, apply):
    one = apply(model, params, *batch, train=True, rngs={"dropout": jax.random.key(0)})
    two = apply(model, params, *batch, train=True, rngs={"dropout": jax.random.key(1)})
    assert not np.allclose(one, two)


def test_impossible_fields_are_named(batch):
    for fields, message in [
        (dict(tie="both"), "Known: all, decoder, none"),
        (dict(positions="rotary"), "Known: concatenated, fairseq, interleaved, learned"),
        (dict(norm="middle"), "Known: post, pre"),
        (dict(key_size=-1), "key_size of at least 1, or 0 for the size of the values, got -1"),
        (dict(key_size=3, attention_kernel="xla"), "'xla' needs keys as large as values, 4 features per head, not key"),
        (dict(max_length=6), "7 tokens are more than the model's max_length=6"),
    ]:
        with pytest.raises(UserError, match=message):
            jax.eval_shape(Transformer(V, V, **{**SMALL, **fields}).init, jax.random.key(0), *batch)
    with pytest.raises(UserError, match="tie=all needs one joint vocabulary, not 11 and 12 tokens"):
        jax.eval_shape(Transformer(V, V + 1, **SMALL).init, jax.random.key(0), *batch)
