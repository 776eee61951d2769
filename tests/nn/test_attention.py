import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from attnjax.errors import UserError
from attnjax.nn.attention import MultiHeadAttention
from attnjax.nn.kernels import choose_kernel, compiling_for, fused_attention, recorded, resolve_precision
from attnjax.nn.masks import Mask
from attnjax.nn.partition import ATTENTION
from attnjax.training import devices
from attnjax.training.sharding import shardings

B, Q, K, D, H = 2, 5, 7, 12, 3


def reference(params, x_q, x_kv, mask=None, bias=None):
    """Computes one head and one query at a time, by the formulas of the paper's section 3.2."""
    out = np.zeros((B, x_q.shape[1], D))
    for b in range(B):
        for h in range(H):
            q = x_q[b] @ params["query"]["kernel"][:, h] + params["query"]["bias"][h]
            k = x_kv[b] @ params["key"]["kernel"][:, h] + params["key"]["bias"][h]
            v = x_kv[b] @ params["value"]["kernel"][:, h] + params["value"]["bias"][h]
            for i, query in enumerate(q):
                logits = np.array([query @ key / np.sqrt(len(query)) for key in k])
                logits = logits + (0 if bias is None else bias[b, h, i])
                allowed = np.ones(len(k), bool) if mask is None else mask[b, h, i]
                if allowed.any():
                    weights = np.where(allowed, np.exp(logits - logits[allowed].max()), 0)
                    out[b, i] += weights / weights.sum() @ v @ params["out"]["kernel"][h]
    return out + params["out"]["bias"]


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    x_q, x_kv = rng.normal(size=(B, Q, D)), rng.normal(size=(B, K, D))
    mask, bias = rng.random((B, H, Q, K)) < 0.6, rng.normal(size=(B, H, Q, K))
    mask[0, 1, 2] = False  # a query that may attend to no key
    return tuple(map(jnp.asarray, (x_q.astype("f"), x_kv.astype("f"), mask, bias.astype("f"))))


def random_params(module, *args):
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(module.init, jax.random.key(0), *args)
    return jax.tree.map(lambda x: 0.5 * rng.normal(size=x.shape).astype(np.float32), shapes)


@pytest.mark.parametrize("kernel", ["head_major", "xla"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_cross_attention_equals_the_definition(inputs, kernel, masked, biased, apply):
    x_q, x_kv, mask, bias = inputs
    module = MultiHeadAttention(H, D, kernel=kernel)
    params = random_params(module, x_q, x_kv)
    options = dict(mask=mask if masked else None, bias=bias if biased else None)
    expected = reference(jax.tree.map(np.asarray, params["params"]), np.asarray(x_q), np.asarray(x_kv), **options)
    np.testing.assert_allclose(apply(module, params, x_q, x_kv, **options), expected, atol=1e-5)


@pytest.mark.parametrize("key_size", [1, 3, 7])
def test_keys_of_another_size_than_values(inputs, key_size, apply):
    x_q, x_kv, mask, bias = inputs
    module = MultiHeadAttention(H, D, key_size=key_size)
    params = random_params(module, x_q, x_kv)["params"]
    shapes = {name: part["kernel"].shape for name, part in params.items()}
    assert shapes == {
        "query": (D, H, key_size), "key": (D, H, key_size), "value": (D, H, D // H), "out": (H, D // H, D),
    }  # fmt: skip
    expected = reference(jax.tree.map(np.asarray, params), np.asarray(x_q), np.asarray(x_kv), mask=mask, bias=bias)
    np.testing.assert_allclose(apply(module, {"params": params}, x_q, x_kv, mask=mask, bias=bias), expected, atol=1e-5)


@pytest.mark.parametrize("key_size", [0, 3])
def test_self_attention_is_cross_attention_with_itself(inputs, key_size, apply):
    x = inputs[0]
    module = MultiHeadAttention(H, D, key_size=key_size)
    params = random_params(module, x)
    np.testing.assert_allclose(apply(module, params, x), apply(module, params, x, x), atol=1e-5)


def test_self_attention_is_permutation_equivariant(inputs, apply):
    x = inputs[1]
    module = MultiHeadAttention(H, D)
    params = random_params(module, x)
    order = np.random.default_rng(0).permutation(K)
    np.testing.assert_allclose(apply(module, params, x[:, order]), apply(module, params, x)[:, order], atol=1e-5)


def test_masked_keys_cannot_be_seen_and_gradients_stay_finite(inputs):
    x_q, x_kv, mask, _ = inputs
    module = MultiHeadAttention(H, D)
    params = random_params(module, x_q, x_kv)
    mask = mask.at[:, :, :, 3].set(False)
    gradient = jax.jit(jax.grad(lambda x: (module.apply(params, x_q, x, mask=mask) ** 2).sum()))(x_kv)
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient[:, 3], 0)
    assert (np.abs(gradient[:, 2]) > 0).any()


@pytest.mark.parametrize("kernel", ["head_major", "xla"])
def test_weights_come_out_as_intermediates(inputs, kernel, apply):
    x_q, x_kv, mask, _ = inputs
    module = MultiHeadAttention(H, D, kernel=kernel)
    params = random_params(module, x_q, x_kv)
    _, state = apply(module, params, x_q, x_kv, mask=mask, mutable="intermediates")
    (weights,) = state["intermediates"]["attention"]
    np.testing.assert_allclose(weights.sum(-1), mask.any(-1), atol=1e-6)
    np.testing.assert_array_equal(weights[~mask], 0)


def test_dropout_differs_by_example_and_head_and_is_off_in_evaluation(apply):
    x = jnp.ones((B, Q, D))
    module = MultiHeadAttention(H, D, dropout=0.5)
    params = random_params(module, x)
    one = apply(module, params, x, train=True, rngs={"dropout": jax.random.key(0)})
    assert not np.allclose(one[0], one[1])
    np.testing.assert_allclose(apply(module, params, x), apply(MultiHeadAttention(H, D), params, x))


def test_bfloat16_computes_in_bfloat16_with_float32_weights(inputs, apply):
    x = inputs[0]
    module = MultiHeadAttention(H, D, dtype="bfloat16")
    params = jax.jit(module.init)(jax.random.key(0), x)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    y = apply(module, params, x)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y, apply(MultiHeadAttention(H, D), params, x), atol=0.05)


@pytest.mark.parametrize(
    ("backend", "dtype", "head_dim", "arrays", "kernel", "reason"),
    [
        ("cpu", "float32", 64, {}, "head_major", "fastest on CPUs"),
        ("gpu", "bfloat16", 64, {}, "cudnn", "fastest on NVIDIA GPUs"),
        ("gpu", "bfloat16", 64, {"biased": True}, "xla", "a bias is an array of all pairs of tokens"),
        ("gpu", "bfloat16", 64, {"masked": True}, "xla", "a mask is an array of all pairs of tokens"),
        ("gpu", "float32", 64, {}, "xla", "cuDNN has no kernel for float32"),
        ("gpu", "bfloat16", 12, {}, "xla", "cuDNN needs a multiple of 8 features per head, at most 128, not 12"),
        ("tpu", "bfloat16", 64, {}, "xla", "fastest on TPUs"),
    ],
)
def test_the_kernel_follows_the_backend(backend, dtype, head_dim, arrays, kernel, reason):
    with compiling_for(backend):
        assert choose_kernel(dtype, head_dim, **arrays) == (kernel, reason)


@pytest.mark.parametrize(
    ("mask", "kernel", "dropout"),
    [
        (Mask(lengths=jnp.array([3, 5])), "cudnn", 0.0),
        (Mask(causal=True), "cudnn", 0.0),
        (Mask(allowed=jnp.ones((1, 1, Q, Q), bool)), "xla", 0.0),
        (Mask(), "head_major", 0.1),
    ],
)
def test_kernels_that_layers_choose_are_recorded(monkeypatch, mask, kernel, dropout):
    monkeypatch.setattr(jax.nn, "dot_product_attention", lambda q, *_, **__: q)
    module = MultiHeadAttention(1, 8, dropout=dropout, dtype="bfloat16")
    x = jnp.ones((B, Q, 8))
    params = jax.jit(module.init)(jax.random.key(0), x)
    with compiling_for("gpu"), recorded() as chosen:
        module.apply(params, x, mask=mask, train=True, rngs={"dropout": jax.random.key(0)})
    assert [name for name, _ in chosen] == [kernel]


def test_precision_is_the_devices_unless_chosen():
    found = []
    for backend in ("cpu", "gpu", "tpu"):
        with compiling_for(backend):
            found.append(resolve_precision("auto"))
    assert found == ["float32", "bfloat16", "bfloat16"]
    assert resolve_precision("bfloat16") == "bfloat16"
    with pytest.raises(UserError, match="unknown precision 'half'"):
        resolve_precision("half")


MASKS = {
    "nothing": Mask(),
    "padding": Mask(lengths=jnp.array([3, 0])),
    "causal": Mask(causal=True),
    "padding and causal": Mask(lengths=jnp.array([3, 5]), causal=True),
    "array": Mask(allowed=jnp.arange(2 * 5 * 5).reshape(2, 1, 5, 5) % 3 > 0),
}


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("name", MASKS)
def test_cudnn_gets_padded_tokens_and_lengths_and_gives_the_outputs_of_the_other_kernel(monkeypatch, name, biased):
    """XLA's kernel stands in for cuDNN's: it takes the same arguments, and this checks what we pass."""
    jax_attention = jax.nn.dot_product_attention

    def stand_in(q, k, v, *, implementation, **options):
        if implementation == "cudnn":
            assert q.shape[1] % 2 == k.shape[1] % 2 == 0
            for array in (options.get("mask"), options.get("bias")):
                assert array is None or array.shape[2:] == (q.shape[1], k.shape[1])
        return jax_attention(q, k, v, implementation="xla", **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    rng = np.random.default_rng(0)
    q, k, v = jnp.asarray(rng.normal(size=(3, 2, 5, 3, 8)).astype("f"))
    bias = jnp.asarray(rng.normal(size=(1, 3, 5, 5)).astype("f")) if biased else None

    def loss(q, k, v, kernel):
        y = fused_attention(q, k, v, mask=MASKS[name], bias=bias, kernel=kernel)
        return (y**2).sum(), y

    gradients = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True), static_argnums=3)
    results = [gradients(q, k, v, kernel) for kernel in ("xla", "cudnn")]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *results)


def test_bad_fields_are_named(inputs):
    with pytest.raises(UserError, match="12 is not divisible by 5 heads"):
        jax.eval_shape(MultiHeadAttention(5, D).init, jax.random.key(0), inputs[0])
    with pytest.raises(UserError, match="head_major"):
        jax.eval_shape(MultiHeadAttention(3, D, kernel="flash").init, jax.random.key(0), inputs[0])


def test_with_tensor_parallelism_each_device_projects_its_own_heads():
    """Queries, keys and values share a product; its axis of heads stays sharded, and no device repeats another's."""
    mesh = devices.make("jit", tensor=8).mesh
    module, x = MultiHeadAttention(8, 64), jnp.ones((2, 16, 64))
    shapes = {"attention": jax.eval_shape(module.init, jax.random.key(0), x)["params"]}

    def attend(variables, x):
        return module.apply({"params": variables["attention"]}, x)

    def operations(sharding):
        inputs = jax.tree.map(lambda s, place: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place), shapes, sharding)
        return jax.jit(attend).lower(inputs, x).compile().cost_analysis()["flops"]

    whole = jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec()), shapes)
    assert operations(shardings(shapes, ATTENTION, mesh)) < 1.2 / 8 * operations(whole)
