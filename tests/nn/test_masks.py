"""Masks by their definitions, for any rows of tokens and segments."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from attnjax.nn.masks import PAD, causal_mask, padding_mask, segment_mask

LENGTH = 5
quick = settings(derandomize=True, database=None, deadline=None, max_examples=25)
segments = st.lists(st.lists(st.integers(0, 3), min_size=LENGTH, max_size=LENGTH), min_size=2, max_size=2).map(np.array)


def allowed(mask):
    """Returns a mask as (B, Q, K)."""
    return np.broadcast_to(mask.array(LENGTH, LENGTH), (2, 1, LENGTH, LENGTH))[:, 0]


@quick
@given(queries=segments, keys=segments, lengths=st.lists(st.integers(0, LENGTH), min_size=2, max_size=2))
def test_masks_and_their_conjunction_are_what_they_say(queries, keys, lengths):
    tokens = np.where(np.arange(LENGTH) < np.array(lengths)[:, None], 7, PAD)
    padding, causal, packed = padding_mask(tokens), causal_mask(), segment_mask(queries, keys)
    found = [allowed(mask) for mask in (padding, causal, packed, padding & causal & packed)]
    for b, q, k in np.ndindex(2, LENGTH, LENGTH):
        own = [k < lengths[b], k <= q, keys[b, k] != PAD and queries[b, q] == keys[b, k]]
        assert [mask[b, q, k] for mask in found] == [*own, all(own)]


@quick
@given(keys=segments, at=st.integers(0, LENGTH - 1))
def test_a_segment_sees_itself_alone(keys, at):
    """What one segment may attend to does not depend on the others, so packed pairs compute as separate ones."""
    alone = np.where(keys == keys[:, at : at + 1], keys, PAD)
    packed, separate = allowed(segment_mask(keys, keys)), allowed(segment_mask(alone, alone))
    np.testing.assert_array_equal(packed[:, at], separate[:, at])
