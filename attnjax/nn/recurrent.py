"""Recurrent layers, and the attention of recurrent encoder-decoders.

Shape suffixes: B batch, S source positions, E width of the input, D width of the state, G gates.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from attnjax.errors import check_choice
from attnjax.nn.linear import Linear, linear

State = tuple[jax.Array, ...]  # (h,) or, for the LSTM, (h, c); each (B, D)


def _gru(state, x, h):
    """Gates r, z, n in torch's order; the reset gate is applied after the matrix product, as in cuDNN."""
    (x_r, x_z, x_n), (h_r, h_z, h_n) = jnp.split(x, 3, -1), jnp.split(h, 3, -1)
    z = jax.nn.sigmoid(x_z + h_z)
    n = jnp.tanh(x_n + jax.nn.sigmoid(x_r + h_r) * h_n)
    return ((1 - z) * n + z * state[0],)


def _lstm(state, x, h):
    """Gates i, f, g, o in torch's order."""
    i, f, g, o = jnp.split(x + h, 4, -1)
    c = jax.nn.sigmoid(f) * state[1] + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


# cell -> (gates, arrays in its state, update(state, W x, U h) -> new state)
CELLS: dict[str, tuple[int, int, Callable]] = {
    "rnn": (1, 1, lambda state, x, h: (jnp.tanh(x + h),)),  # Elman 1990
    "gru": (3, 1, _gru),  # Cho et al. 2014
    "lstm": (4, 2, _lstm),  # Hochreiter & Schmidhuber 1997
}


class Recurrent(nn.Module):
    """One layer of a recurrent network, with two biases as in torch.

    Over a sequence, one matrix product before the scan computes the input projections of all steps; the scan has only
    the products with the state. Products and outputs have `dtype`; the state, which accumulates over time, is float32.
    """

    cell: str
    features: int
    dtype: str = "float32"

    def setup(self):
        check_choice("cell", self.cell, CELLS)
        self.gates, self.arrays, self.update = CELLS[self.cell]
        width = self.gates * self.features
        self.input = Linear(width, dtype=self.dtype)
        self.hidden = Linear(width, kernel_init=nn.initializers.orthogonal(), dtype=self.dtype)

    def start(self, batch: int) -> State:
        """Returns the zero state."""
        return (jnp.zeros((batch, self.features)),) * self.arrays

    def step(self, x, state: State) -> State:
        """Returns the state after an input (B, E); its first array is the output (B, D)."""
        return self._next(state, self.input(x), self.hidden(state[0]))

    def _next(self, state, x, h):
        return self.update(state, x.astype(jnp.float32), h.astype(jnp.float32))

    def __call__(self, x, mask=None, *, reverse: bool = False):
        """Returns outputs (B, S, D) and the last state, for inputs (B, S, E) and mask (B, S), True for tokens.

        Padding leaves the state unchanged and has zero outputs; `reverse` reads from the last token to the first.
        """
        mask = jnp.ones(x.shape[:2], bool) if mask is None else mask
        kernel, bias = self.hidden.weights((self.features,))

        def step(state, inputs):
            x_BG, token_B = inputs
            new = self._next(state, x_BG, linear(state[0], kernel, bias, dtype=self.dtype))
            state = jax.tree.map(lambda a, b: jnp.where(token_B[:, None], a, b), new, state)
            return state, jnp.where(token_B[:, None], state[0], 0).astype(self.dtype)

        over_time = (self.input(x).swapaxes(0, 1), mask.swapaxes(0, 1))
        state, outputs = jax.lax.scan(step, self.start(x.shape[0]), over_time, reverse=reverse)
        return outputs.swapaxes(0, 1), state


class DotAttention(nn.Module):
    """Luong et al. (2015, equation 8, general): score = query W memory."""

    features: int  # of the query
    dtype: str = "float32"

    def setup(self):
        self.key = Linear(self.features, use_bias=False, dtype=self.dtype)

    def keys(self, memory):
        """Returns W memory (B, S, features) for the memory (B, S, M); it is the same at all steps."""
        return self.key(memory)

    def scores(self, query, keys):
        """Returns (B, S), the score of each position of the memory for a query (B, D)."""
        return jnp.einsum("bd,bsd->bs", query, keys)

    def __call__(self, query, memory, keys, mask):
        """Returns the context (B, M) and weights (B, S) float32, for a query (B, D), the memory and mask (B, S)."""
        scores = self.scores(query, keys).astype(jnp.float32)
        weights = jax.nn.softmax(jnp.where(mask, scores, jnp.finfo(jnp.float32).min))
        return jnp.einsum("bs,bsm->bm", weights.astype(memory.dtype), memory), weights


class AdditiveAttention(DotAttention):
    """Bahdanau et al. (2015, appendix A.1.2): score = v tanh(W query + U memory), with U memory the keys."""

    def setup(self):
        super().setup()
        self.query = Linear(self.features, dtype=self.dtype)
        self.score = Linear(1, use_bias=False, dtype=self.dtype)

    def scores(self, query, keys):
        return self.score(jnp.tanh(self.query(query)[:, None] + keys))[..., 0]
