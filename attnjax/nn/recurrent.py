"""Recurrent layers, and the attention of recurrent encoder-decoders.

Shape suffixes: B batch, S source positions, E width of the input, D width of the state, G gates times D, R directions.
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from attnjax.errors import check_choice
from attnjax.nn.kernels import backend
from attnjax.nn.linear import Linear, linear

State = tuple[jax.Array, ...]  # (h,) or, for the LSTM, (h, c); each (B, D) float32
Weights = tuple[jax.Array, jax.Array]  # a kernel and a bias


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


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def recurrence(cell: str, dtype: str, weights: Weights, x_SBG, token_SB, start: State) -> tuple[jax.Array, State]:
    """Returns h after each step, (S, B, D) float32, and the last state.

    The backward pass adds up the gradient of the weights in one matrix product after its loop over the steps. Inside
    the loop, as automatic differentiation has it, each step would read and write an array of the weights' size.

    Args:
      cell: one of CELLS.
      dtype: of the matrix products.
      weights: kernel (D, G) and bias (G,) of the hidden state.
      x_SBG: the projections of the inputs.
      token_SB: boolean; False leaves the state unchanged.
      start: the state before the first step.
    """
    return _recurrence_forward(cell, dtype, weights, x_SBG, token_SB, start)[0]


def _update(cell, state, x_BG, hidden_BG):
    return CELLS[cell][2](state, x_BG.astype(jnp.float32), hidden_BG.astype(jnp.float32))


def _recurrence_forward(cell, dtype, weights, x_SBG, token_SB, start):
    def step(state, inputs):
        x_BG, token_B = inputs
        hidden_BG = linear(state[0], *weights, dtype=dtype)
        new = _update(cell, state, x_BG, hidden_BG)
        after = jax.tree.map(lambda a, b: jnp.where(token_B[:, None], a, b), new, state)
        return after, (after, hidden_BG)

    last, (after, hidden_SBG) = jax.lax.scan(step, start, (x_SBG, token_SB))
    return (after[0], last), (weights, x_SBG, token_SB, start, after, hidden_SBG)


def _recurrence_backward(cell, dtype, saved, gradients):
    (kernel, _), x_SBG, token_SB, start, after, hidden_SBG = saved
    before = jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest[:-1]]), start, after)
    kernel_GD = kernel.astype(dtype).T

    def step(d_after, inputs):
        d_h, state, x_BG, hidden_BG, token_B = inputs
        d_after = (d_after[0] + d_h, *d_after[1:])
        d_new = jax.tree.map(lambda d: jnp.where(token_B[:, None], d, 0), d_after)
        d_kept = jax.tree.map(lambda d: jnp.where(token_B[:, None], 0, d), d_after)
        d_state, d_x, d_hidden = jax.vjp(partial(_update, cell), state, x_BG, hidden_BG)[1](d_new)
        d_state = (d_state[0] + (d_hidden @ kernel_GD).astype(jnp.float32), *d_state[1:])
        return jax.tree.map(jnp.add, d_state, d_kept), (d_x, d_hidden)

    inputs = (gradients[0], before, x_SBG, hidden_SBG, token_SB)
    d_start, (d_x, d_hidden) = jax.lax.scan(step, gradients[1], inputs, reverse=True)
    steps = (before[0].reshape(-1, kernel.shape[0]), d_hidden.reshape(-1, kernel.shape[1]))
    d_kernel = jnp.matmul(steps[0].astype(dtype).T, steps[1], preferred_element_type=jnp.float32)
    return (d_kernel, steps[1].sum(0, dtype=jnp.float32)), d_x, None, d_start


recurrence.defvjp(_recurrence_forward, _recurrence_backward)


class Recurrent(nn.Module):
    """One layer of a recurrent network, with two biases as in torch.

    Over a sequence, one matrix product before the loop computes the input projections of all steps; the loop has only
    the products with the state. Products and outputs have `dtype`; the state, which accumulates over time, is float32.
    """

    cell: str
    features: int
    dtype: str = "float32"

    def setup(self):
        check_choice("cell", self.cell, CELLS)
        self.gates, self.arrays, _ = CELLS[self.cell]
        width = self.gates * self.features
        self.input = Linear(width, dtype=self.dtype)
        self.hidden = Linear(width, kernel_init=nn.initializers.orthogonal(), dtype=self.dtype)

    def start(self, batch: int) -> State:
        """Returns the zero state."""
        return (jnp.zeros((batch, self.features)),) * self.arrays

    def step(self, x, state: State) -> State:
        """Returns the state after an input (B, E); its first array is the output (B, D)."""
        return _update(self.cell, state, self.input(x), self.hidden(state[0]))

    def __call__(self, x, mask=None, *, start: State | None = None):
        """Returns outputs (B, S, D) and the last state, for inputs (B, S, E) and mask (B, S), True for tokens.

        Padding leaves the state unchanged and has zero outputs. `start` is the state before the first input, by default
        zeros.
        """
        start = self.start(x.shape[0]) if start is None else start
        token_SB = jnp.ones((x.shape[1], x.shape[0]), bool) if mask is None else mask.T
        x_SBG = self.input(x).swapaxes(0, 1)
        h_SBD, last = recurrence(self.cell, self.dtype, self.hidden_weights(), x_SBG, token_SB, start)
        return _outputs(h_SBD, token_SB, self.dtype), last

    def hidden_weights(self) -> Weights:
        """Returns the kernel (D, G) and the bias (G,) of the hidden state."""
        return self.hidden.weights((self.features,))


def bidirectional(forward: Recurrent, backward: Recurrent, x, mask):
    """Returns the outputs (B, S, 2D) of a layer that reads both ways, and the last state of each direction.

    `backward` reads from the last token to the first. Inputs are (B, S, E), the mask (B, S).
    """
    token_SB = mask.T
    x_SBG, y_SBG = forward.input(x).swapaxes(0, 1), backward.input(x).swapaxes(0, 1)
    (h_SBD, last), (b_SBD, first) = _at_once(
        partial(recurrence, forward.cell, forward.dtype),
        (forward.hidden_weights(), x_SBG, token_SB, forward.start(len(x))),
        (backward.hidden_weights(), y_SBG[::-1], token_SB[::-1], backward.start(len(x))),
    )
    return _outputs(jnp.concatenate([h_SBD, b_SBD[::-1]], -1), token_SB, forward.dtype), last, first


def _at_once(function, *calls):
    """Returns [function(*arguments) for each of `calls`], computed in one loop where batched products are fast."""
    if backend() == "cpu":  # a batched product took 1.2 times as long as two
        return [function(*arguments) for arguments in calls]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *calls)
    results = jax.vmap(function)(*stacked)
    return [jax.tree.map(lambda x, i=i: x[i], results) for i in range(len(calls))]


def _outputs(h_SBD, token_SB, dtype):
    return jnp.where(token_SB[..., None], h_SBD, 0).astype(dtype).swapaxes(0, 1)


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
        """Returns (B, ..., S), the score of each position of the memory for queries (B, ..., D)."""
        return jnp.einsum("b...d,bsd->b...s", query, keys)

    def __call__(self, query, memory, keys, mask):
        """Returns contexts (B, ..., M) and weights (B, ..., S) float32, for queries (B, ..., D) and mask (B, S)."""
        scores = self.scores(query, keys).astype(jnp.float32)
        mask = jnp.expand_dims(mask, tuple(range(1, scores.ndim - 1)))
        weights = jax.nn.softmax(jnp.where(mask, scores, jnp.finfo(jnp.float32).min))
        return jnp.einsum("b...s,bsm->b...m", weights.astype(memory.dtype), memory), weights


class AdditiveAttention(DotAttention):
    """Bahdanau et al. (2015, appendix A.1.2): score = v tanh(W query + U memory), with U memory the keys."""

    def setup(self):
        super().setup()
        self.query = Linear(self.features, dtype=self.dtype)
        self.score = Linear(1, use_bias=False, dtype=self.dtype)

    def scores(self, query, keys):
        """Returns (B, S), the scores for one query (B, D) per example."""
        return self.score(jnp.tanh(self.query(query)[:, None] + keys))[..., 0]
