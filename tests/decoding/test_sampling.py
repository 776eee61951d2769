import jax
import numpy as np
import pytest

from attnjax.decoding import Options, SamplingOptions, sample

DRAWS = 4000
OPTIONS = Options(max_length=3)
draw = jax.jit(sample, static_argnums=(0, 2, 3))


def frequencies(decoder, seed=0, **changes):
    """Returns the relative frequencies (2, V) of the first token for examples 0 and 1, and the samples."""
    rngs = jax.random.split(jax.random.key(seed), 2)
    sampling = SamplingOptions(DRAWS, **changes)
    found = jax.device_get(draw(decoder.step, decoder.cache([0, 1]), OPTIONS, sampling, rngs))
    return np.array([np.bincount(row, minlength=6) / DRAWS for row in found.tokens[:, :, 0]]), found


def model(decoder, temperature=1.0):
    """Returns the model's probabilities (2, V) of the first token, with pad and bos excluded."""
    logits = np.stack([decoder.logits(example, [0])[0] for example in (0, 1)]) / temperature
    logits[:, :2] = -np.inf
    probs = np.exp(logits)
    return probs / probs.sum(-1, keepdims=True)


def cut(probs, kept):
    """Keeps the `kept` most probable tokens of each row, renormalised."""
    rank = (-probs).argsort(-1).argsort(-1)
    probs = np.where(rank < kept, probs, 0)
    return probs / probs.sum(-1, keepdims=True)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_frequencies_are_the_model_probabilities(decoder, temperature):
    seen, found = frequencies(decoder, temperature=temperature)
    np.testing.assert_allclose(seen, model(decoder, temperature), atol=4 * 0.5 / np.sqrt(DRAWS))
    # At any temperature the log-probabilities are the model's own.
    for example in (0, 1):
        for tokens, log_probs in zip(found.tokens[example, :20], found.log_probs[example, :20], strict=True):
            given = tokens != 0
            expected = decoder.log_probs(example, tokens)[range(3), tokens]
            np.testing.assert_allclose(log_probs[given], expected[given], atol=1e-5)


def test_top_k(decoder):
    seen, _ = frequencies(decoder, top_k=2)
    expected = cut(model(decoder), 2)
    np.testing.assert_array_equal(seen > 0, expected > 0)
    np.testing.assert_allclose(seen, expected, atol=4 * 0.5 / np.sqrt(DRAWS))


def test_top_p(decoder):
    probs = model(decoder)
    ordered = -np.sort(-probs)
    top_p = 0.8
    kept = (ordered.cumsum(-1) < top_p).sum(
        -1, keepdims=True
    ) + 1  # the size of the smallest set with at least this probability
    assert kept.min() != kept.max()
    seen, _ = frequencies(decoder, top_p=top_p)
    expected = cut(probs, kept)
    np.testing.assert_array_equal(seen > 0, expected > 0)
    np.testing.assert_allclose(seen, expected, atol=4 * 0.5 / np.sqrt(DRAWS))


def test_top_k_comes_before_top_p(decoder):
    probs = cut(model(decoder), 2)
    top_p = float(probs.max(-1).min()) - 0.01  # the more probable of two is enough, once top_k has removed the others
    seen, _ = frequencies(decoder, top_k=2, top_p=top_p)
    np.testing.assert_array_equal(seen.max(-1), 1)


def test_the_key_decides(decoder):
    first, again, other = (frequencies(decoder, seed, temperature=1.0)[1].tokens for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert len({tuple(row) for row in first[0]}) > 5
