"""Layouts of published arrays: torch's of any shape is that of its layers, and reading undoes writing."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from attnjax.weights.naming import Format, from_published, to_published

TORCH = Format("torch", marker="", modules=lambda model: {})
sizes = st.integers(1, 4)


@settings(derandomize=True, database=None, deadline=None, max_examples=25)
@given(width=sizes, heads=sizes, size=sizes, kernel=sizes)
def test_torchs_layout_computes_the_same_and_is_read_again(width, heads, size, kernel):
    rng = np.random.default_rng(0)
    shapes = {
        "params/attention/query/kernel": (width, heads, size),
        "params/attention/query/bias": (heads, size),
        "params/attention/out/kernel": (heads, size, width),
        "params/conv/kernel": (kernel, kernel, size, width),
        "params/norm/scale": (width,),
        "batch_stats/norm/mean": (width,),
    }
    variables = {path: rng.normal(size=shape).astype(np.float32) for path, shape in shapes.items()}
    arrays = to_published(variables, TORCH, None)
    x = rng.normal(size=width)
    query = np.einsum("d,dhk->hk", x, variables["params/attention/query/kernel"])
    np.testing.assert_allclose(arrays["attention/query.weight"] @ x, query.reshape(-1), atol=1e-6)
    out = np.einsum("hk,hkd->d", query, variables["params/attention/out/kernel"])
    np.testing.assert_allclose(arrays["attention/out.weight"] @ query.reshape(-1), out, atol=1e-5)
    assert arrays["conv.weight"].shape == (width, size, kernel, kernel)
    assert arrays["norm.running_mean"] is not None and arrays["norm.weight"].shape == (width,)
    again = from_published(arrays, TORCH, None, shapes, "a")
    assert again.keys() == variables.keys()
    assert all(np.array_equal(again[path], array) for path, array in variables.items())
