"""Sequence generation: greedy, sampling and beam search over any decoder given as a cache and a step.

A decoder is a function

    step(cache, token, position) -> (logits, cache)

with token (N,) int32, position () int32 counting from 0, logits (N, V) float. N = batch * hypotheses, an example's
hypotheses side by side. At position 0 the token is `bos` and the cache is as given to the search, repeated for every
hypothesis. `cache` is any pytree of arrays with a leading axis of the batch: what depends on a hypothesis' own tokens
(keys and values of its self-attention, the state of an RNN), since a search reorders it at every step. What an
example's hypotheses share (the encoder's output, its keys and values, masks) `step` may close over instead, repeated
by `expand`, which saves reordering equal rows.

Everything runs inside jit, with shapes fixed by `Options`; a search stops as soon as the whole batch has. An example's
result does not depend on its batch. Attention maps are not decoding's business: run the model once more on the finished
tokens, teacher-forced, as `score` needs it to be run too.
"""

from attnjax.decoding.beam import beam_search
from attnjax.decoding.options import LENGTH_PENALTIES, Options
from attnjax.decoding.sampling import greedy, sample
from attnjax.decoding.score import Hypotheses, score
from attnjax.decoding.steps import expand

__all__ = ["LENGTH_PENALTIES", "Hypotheses", "Options", "beam_search", "expand", "greedy", "sample", "score"]
