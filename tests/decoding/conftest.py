import jax.numpy as jnp
import numpy as np
import pytest

PAD, BOS, EOS = 0, 1, 2


class TinyDecoder:
    """A random RNN over 6 tokens, 3 of them words: its state depends on all previous tokens and their order.

    `step` and `cache(examples)` are the decoder of a search; `log_probs` is the same in float64, in plain loops.
    """

    vocabulary_size, width = 6, 8

    def __init__(self, seed):
        rng = np.random.default_rng(seed)
        v, d = self.vocabulary_size, self.width
        self.embedding, self.recurrent = rng.normal(size=(v, d)), rng.normal(size=(d, d)) / np.sqrt(d)
        self.out, self.positions = rng.normal(size=(d, v)), rng.normal(size=(50, v)) / 2
        self.contexts = rng.normal(size=(10, d))

    def cache(self, examples):
        context = jnp.asarray(self.contexts[list(examples)], jnp.float32)
        return {"state": jnp.zeros_like(context), "context": context}

    def step(self, cache, token, position):
        f = jnp.float32
        assert token.dtype == position.dtype == jnp.int32
        state = cache["state"] @ jnp.asarray(self.recurrent, f) + jnp.asarray(self.embedding, f)[token]
        state = jnp.tanh(state + cache["context"])
        logits = state @ jnp.asarray(self.out, f) + jnp.asarray(self.positions, f)[position]
        return logits, {"state": state, "context": cache["context"]}

    def logits(self, example, tokens):
        """Returns the logits (T, V) of each of `tokens`, given bos and the tokens before it."""
        state, rows = np.zeros(self.width), []
        for position, token in enumerate([BOS, *tokens[:-1]]):
            state = np.tanh(state @ self.recurrent + self.embedding[token] + self.contexts[example])
            rows.append(state @ self.out + self.positions[position])
        return np.array(rows)

    def log_probs(self, example, tokens):
        logits = self.logits(example, tokens)
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@pytest.fixture(scope="session")
def decoder():
    return TinyDecoder(seed=3)
