"""The cases of fairseq's tests/test_sequence_generator.py, with a table of probabilities as the model."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.decoding import Options, SamplingOptions, beam_search, sample

EOS, W1, W2 = 2, 4, 5

# [step][sentence and beam] -> probabilities of eos, unk, w1, w2; the last step repeats.
BEAM_TABLE = [
    [[0.0, 0, 0.9, 0.1], [0.0, 0, 0.9, 0.1], [0.0, 0, 0.7, 0.3], [0.0, 0, 0.7, 0.3]],
    [[1.0, 0, 0.0, 0.0], [0.0, 0, 0.9, 0.1], [0.25, 0, 0.35, 0.4], [0.0, 0, 0.1, 0.9]],
    [[0.0, 0, 0.1, 0.9], [0.6, 0, 0.2, 0.2], [0.6, 0, 0.4, 0.0], [0.01, 0, 0.0, 0.99]],
    [[1.0, 0, 0.0, 0.0], [1.0, 0, 0.0, 0.0], [0.1, 0, 0.5, 0.4], [1.0, 0, 0.0, 0.0]],
    [[1.0, 0, 0.0, 0.0]] * 4,
]
TOP_P_TABLE = [[[0.0, 0, 1.0, 0.0]] * 4, [[0.25, 0, 0.4, 0.35]] * 4, [[1.0, 0, 0.0, 0.0]] * 4]


def table_step(table):
    logits = np.full((len(table), 4, 6), -np.inf, np.float32)
    with np.errstate(divide="ignore"):
        logits[:, :, EOS:] = np.log(np.float32(table))
    logits = jnp.asarray(logits)
    return lambda cache, token, position: (logits[jnp.minimum(position, len(table) - 1)], cache)


def check(found, tokens, probabilities, penalty):
    """Compares one hypothesis with fairseq's."""
    log_probs = np.log(np.float32(probabilities))
    length = len(tokens)
    np.testing.assert_array_equal(found.tokens, tokens + [0] * (found.tokens.size - length))
    assert found.lengths == length
    np.testing.assert_allclose(found.log_probs[:length], log_probs, atol=1e-6)
    np.testing.assert_array_equal(found.log_probs[length:], 0)
    np.testing.assert_allclose(found.scores, log_probs.sum() / length**penalty, atol=1e-6)


S1_SHORT = ([W1, EOS], [0.9, 1.0])
S1_LONG = ([W2, W1, W2, EOS], [0.1, 0.9, 0.9, 1.0])
S2_SHORT = ([W1, W2, EOS], [0.7, 0.4, 0.6])
S2_LONG = ([W1, W2, W1, EOS], [0.7, 0.4, 0.4, 1.0])
S1_CUT = ([W2, W2, EOS], [0.1, 0.1, 0.6])
S2_CUT = ([W2, W2, EOS], [0.3, 0.9, 0.01])


@pytest.mark.parametrize(
    ("max_length", "penalty", "expected"),
    [
        pytest.param(201, 1.0, [[S1_SHORT, S1_LONG], [S2_LONG, S2_SHORT]], id="normalised"),
        pytest.param(201, 0.0, [[S1_SHORT, S1_LONG], [S2_SHORT, S2_LONG]], id="unnormalised"),
        pytest.param(201, 0.6, [[S1_SHORT, S1_LONG], [S2_SHORT, S2_LONG]], id="favouring short"),
        pytest.param(201, 5.0, [[S1_LONG, S1_SHORT], [S2_LONG, S2_SHORT]], id="favouring long"),
        pytest.param(3, 1.0, [[S1_SHORT, S1_CUT], [S2_SHORT, S2_CUT]], id="max_len_b 2"),
    ],
)
def test_beam_search(max_length, penalty, expected):
    options = Options(
        max_length=max_length, beam_size=2, n_best=2, length_penalty="average", alpha=penalty, early_stopping=True
    )
    if penalty == 0:
        options = dataclasses.replace(options, length_penalty="none", alpha=1.0)
    run = jax.jit(functools.partial(beam_search, table_step(BEAM_TABLE), options=options))
    found = jax.device_get(run(jnp.zeros(2)))
    for sentence in range(2):
        for rank in range(2):
            hypothesis = jax.tree.map(lambda x, at=(sentence, rank): x[at], found)
            check(hypothesis, *expected[sentence][rank], penalty)


@pytest.mark.parametrize(("top_p", "second"), [(0.2, {W1: 0.4}), (0.575, {W1: 0.4, W2: 0.35})])
def test_top_p_sampling(top_p, second):
    options = Options(max_length=6, length_penalty="average")
    rngs = jax.random.split(jax.random.key(0), 4)
    sampling = SamplingOptions(top_p=top_p)
    run = jax.jit(functools.partial(sample, table_step(TOP_P_TABLE), options=options, sampling=sampling))
    found = jax.device_get(run(jnp.zeros(4), rngs=rngs))
    assert set(found.tokens[:, 0, 1]) == set(second)
    for i in range(4):
        hypothesis = jax.tree.map(lambda x, i=i: x[i, 0], found)
        token = int(hypothesis.tokens[1])
        check(hypothesis, [W1, token, EOS], [1.0, second[token], 1.0], 1.0)
