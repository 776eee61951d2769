"""Masks by their definitions, for any rows of tokens and segments."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from attnjax.nn.masks import PAD, causal_mask, padding_mask, segment_mask

quick = settings(derandomize=True, database=None, deadline=None, max_examples=30)
rows = st.lists(st.lists(st.integers(0, 3), min_size=5, max_size=5), min_size=2, max_size=2).map(np.array)


@quick
@given(queries=rows, keys=rows)
def test_masks_are_what_they_say(queries, keys):
    padding, segments = np.asarray(padding_mask(keys)), np.asarray(segment_mask(queries, keys))
    causal = np.asarray(causal_mask(5))
    for b, k in np.ndindex(keys.shape):
        assert padding[b, 0, 0, k] == (keys[b, k] != PAD)
        for q in range(5):
            assert segments[b, 0, q, k] == (keys[b, k] != PAD and queries[b, q] == keys[b, k])
            assert causal[0, 0, q, k] == (k <= q)


@quick
@given(keys=rows, at=st.integers(0, 4))
def test_a_segment_sees_itself_alone(keys, at):
    """What one segment may attend to does not depend on the others, so packed pairs compute as separate ones."""
    own = keys == keys[:, at : at + 1]
    alone = np.where(own, keys, PAD)
    query = slice(at, at + 1)
    packed, separate = segment_mask(keys[:, query], keys), segment_mask(alone[:, query], alone)
    np.testing.assert_array_equal(packed, separate)
