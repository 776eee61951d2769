"""Autoregressive decoding: greedy search, sampling and beam search, for any decoder with a KV cache or other state.

A decoder is a function

    step(cache, token, position) -> (logits, cache)

with token (N,) int32, position () int32 from 0, logits (N, V) float. N = B * K: the K hypotheses of an example are
consecutive rows. At position 0 the token is `bos` and the cache is the one given to the search, repeated for every
hypothesis. `cache` is any pytree of arrays whose leading axis is the batch. It holds what depends on a hypothesis' own
tokens (keys and values of self-attention, the state of an RNN), because beam search reorders it at every step. What the
hypotheses of an example share (the encoder's output, its keys and values, masks) can be closed over by `step` instead,
repeated with `expand`; this saves reordering equal rows.

Everything runs inside jit with shapes fixed by `Options`; a search stops once every example in the batch has finished.
The result for an example does not depend on its batch. For attention maps, or for the logits that `score` needs, run
the model again on the finished tokens with teacher forcing.
"""

from attnjax.decoding.beam import beam_search
from attnjax.decoding.options import Options, SamplingOptions
from attnjax.decoding.sampling import greedy, sample
from attnjax.decoding.score import Hypotheses, score
from attnjax.decoding.steps import expand

__all__ = ["Hypotheses", "Options", "SamplingOptions", "beam_search", "expand", "greedy", "sample", "score"]
