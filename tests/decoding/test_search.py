import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnjax.decoding import Options, SamplingOptions, beam_search, expand, greedy, sample, score
from attnjax.decoding.options import LENGTH_PENALTIES
from attnjax.errors import UserError

PAD, BOS, EOS = 0, 1, 2
WORDS = (3, 4, 5)
EXAMPLES = range(4)
LIMITS = np.array([9, 4, 7, 1])
PREFIX = np.array([[4, PAD, PAD], [3, 3, 4], [PAD, PAD, PAD], [4, 5, EOS]])

# name -> (fields of Options, arrays passed to the search)
CASES = {
    "plain": (dict(), {}),
    "blocked": (dict(no_repeat_ngram=2, min_length=4, length_penalty="average", alpha=0.7), dict(max_lengths=LIMITS)),
    "forced": (dict(no_repeat_ngram=1, min_length=3, length_penalty="gnmt", alpha=0.6), dict(prefix=PREFIX)),
}
cases = pytest.mark.parametrize("case", CASES)


@functools.partial(jax.jit, static_argnums=(0, 1, 3), static_argnames="sampling")
def compiled(search, step, cache, options, *args, **kwargs):
    return search(step, cache, options, *args, **kwargs)


def run(search, decoder, options, *args, examples=EXAMPLES, **kwargs):
    return jax.device_get(compiled(search, decoder.step, decoder.cache(examples), options, *args, **kwargs))


def row(found, example, rank=0):
    return found.tokens[example, rank, : found.lengths[example, rank]].tolist()


def assert_same(found, expected):
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_array_equal(found.lengths, expected.lengths)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
    np.testing.assert_allclose(found.log_probs, expected.log_probs, atol=1e-5)


def divisor(options, length):
    return LENGTH_PENALTIES[options.length_penalty](float(length), options.alpha)


def allowed(history, options, limit, prefix):
    """Returns the tokens that may follow a list of tokens according to the rules of Options, in plain Python."""
    position, n = len(history), options.no_repeat_ngram
    if position == limit - 1:
        return [EOS]
    if position < len(prefix) and prefix[position] != PAD:
        return [prefix[position]]
    ngrams = [history[i : i + n] for i in range(position - n + 1)] if n else []
    words = [word for word in WORDS if [*history[position - n + 1 :], word] not in ngrams] if n > 1 else list(WORDS)
    if n == 1:
        words = [word for word in WORDS if word not in history]
    return ([EOS] if position >= options.min_length - 1 or not words else []) + words


def plain_beam_search(decoder, example, options, limit, prefix):
    """Beam search on lists: [(score, tokens)], best first. Without early stopping it searches until no beam is open."""
    beams, finished = [(0.0, [])], []
    while beams and not (options.early_stopping and len(finished) >= options.beam_size):
        candidates = []
        for total, history in beams:
            log_probs = decoder.log_probs(example, [*history, PAD])[-1]
            forced_end = len(history) == limit - 1 and not options.score_forced_eos
            for token in allowed(history, options, limit, prefix):
                candidates.append((total + (0.0 if forced_end else log_probs[token]), [*history, token]))
        candidates = sorted(candidates, reverse=True)[: 2 * options.beam_size]
        for total, tokens in candidates[: options.beam_size]:
            if tokens[-1] == EOS and not (options.early_stopping and len(finished) >= options.beam_size):
                finished.append((total / divisor(options, len(tokens)), tokens))
        beams = [candidate for candidate in candidates if candidate[1][-1] != EOS][: options.beam_size]
    return sorted(finished, reverse=True)[: options.n_best]


def test_a_wide_enough_beam_finds_all_sequences(decoder):
    options = Options(max_length=4, beam_size=41, n_best=41, length_penalty="gnmt", alpha=0.8)
    found = run(beam_search, decoder, options)
    for example in EXAMPLES:
        every = []
        for length in range(options.max_length):
            for words in itertools.product(WORDS, repeat=length):
                tokens = [*words, EOS]
                log_probs = decoder.log_probs(example, tokens)[range(length + 1), tokens]
                every.append((log_probs.sum() / divisor(options, length + 1), tokens))
        every.sort(reverse=True)
        assert [row(found, example, rank) for rank in range(40)] == [tokens for _, tokens in every]
        np.testing.assert_allclose(found.scores[example, :40], [total for total, _ in every], atol=1e-5)
    # There are 40 sequences of up to 3 words, so the 41st hypothesis is empty.
    assert (found.lengths[:, 40] == 0).all() and (found.scores[:, 40] == -np.inf).all()
    assert (found.tokens[:, 40] == PAD).all() and (found.log_probs[:, 40] == 0).all()


SEARCHES = [
    dict(n_best=1),
    dict(n_best=3, early_stopping=True),
    dict(n_best=3, no_repeat_ngram=2, min_length=4, length_penalty="average", alpha=0.7),
    dict(n_best=3, no_repeat_ngram=1, min_length=8, length_penalty="gnmt", alpha=0.6),  # runs out of tokens
    dict(n_best=2, score_forced_eos=False, length_penalty="gnmt", alpha=1.2),
    dict(n_best=3, score_forced_eos=False, early_stopping=True, no_repeat_ngram=2),
]
PREFIXES = st.lists(st.sampled_from([PAD, *WORDS, EOS]), min_size=3, max_size=3)


@settings(derandomize=True, database=None, deadline=None, max_examples=40)
@given(
    fields=st.sampled_from(SEARCHES),
    limits=st.lists(st.integers(1, 9), min_size=4, max_size=4),
    prefix=st.lists(PREFIXES, min_size=4, max_size=4),
)
def test_beam_search_equals_plain_python(decoder, fields, limits, prefix):
    options = Options(max_length=9, beam_size=3, **fields)
    found = run(beam_search, decoder, options, max_lengths=np.array(limits), prefix=np.array(prefix))
    for example in EXAMPLES:
        expected = plain_beam_search(decoder, example, options, limits[example], prefix[example])
        assert expected
        assert [row(found, example, rank) for rank in range(len(expected))] == [tokens for _, tokens in expected]
        np.testing.assert_allclose(found.scores[example, : len(expected)], [total for total, _ in expected], atol=1e-5)
        assert (found.lengths[example, len(expected) :] == 0).all()


@pytest.mark.parametrize("search", [greedy, beam_search])
def test_where_the_rules_leave_no_token_the_output_ends(decoder, search):
    """Three words, none of which may occur twice, and no end before the seventh token."""
    found = run(search, decoder, Options(max_length=9, min_length=7, no_repeat_ngram=1))
    assert (found.lengths == 4).all()
    assert all(sorted(row(found, example)) == [EOS, *WORDS] for example in EXAMPLES)


def test_a_forced_end_may_count_nothing(decoder):
    """transformers' rule; only the eos at the maximum length is concerned, not one in the prefix."""
    limits = np.array([2, 3, 9, 2])
    prefix = np.array([[4, PAD], [4, 5], [4, EOS], [4, PAD]])
    for counts in (True, False):
        options = Options(max_length=9, score_forced_eos=counts)
        found = run(greedy, decoder, options, max_lengths=limits, prefix=prefix)
        for example, tokens in enumerate(([4, EOS], [4, 5, EOS], [4, EOS], [4, EOS])):
            assert row(found, example) == tokens
            own = decoder.log_probs(example, tokens)[range(len(tokens)), tokens]
            own[-1] *= counts or example == 2
            np.testing.assert_allclose(found.log_probs[example, 0, : len(tokens)], own, atol=1e-5)
            np.testing.assert_allclose(found.scores[example, 0], own.sum(), atol=1e-5)


@cases
def test_one_beam_is_greedy_and_so_is_sampling_with_top_k_1(decoder, case):
    fields, arrays = CASES[case]
    options = Options(max_length=9, **fields)
    expected = run(greedy, decoder, options, **arrays)
    assert expected.tokens.shape == (4, 1, 9)
    assert_same(run(beam_search, decoder, options, **arrays), expected)
    rngs = jax.random.split(jax.random.key(0), 4)
    assert_same(run(sample, decoder, options, sampling=SamplingOptions(top_k=1), rngs=rngs, **arrays), expected)


def samples(decoder, options, examples=EXAMPLES, **arrays):
    rngs = jax.random.split(jax.random.key(1), 10)[np.array(examples)]
    options = dataclasses.replace(options, beam_size=1, n_best=1)
    return run(sample, decoder, options, sampling=SamplingOptions(3), rngs=rngs, examples=examples, **arrays)


def beams(decoder, options, examples=EXAMPLES, **arrays):
    return run(beam_search, decoder, options, examples=examples, **arrays)


searches = pytest.mark.parametrize("search", [beams, samples])


@searches
@cases
def test_constraints_hold_and_n_best_differ(decoder, search, case):
    fields, arrays = CASES[case]
    options = Options(max_length=9, beam_size=3, n_best=3, **fields)
    found = search(decoder, options, **arrays)
    limits, prefixes = arrays.get("max_lengths", [9] * 4), arrays.get("prefix", [[]] * 4)
    for example in EXAMPLES:
        rows = [row(found, example, rank) for rank in range(3) if found.lengths[example, rank]]
        assert rows
        for tokens in rows:
            for position, token in enumerate(tokens):
                assert token in allowed(tokens[:position], options, limits[example], prefixes[example])
            assert tokens.index(EOS) == len(tokens) - 1
        if search is beams:
            assert len(set(map(tuple, rows))) == len(rows)
    if search is beams:
        assert (found.scores[:, 1:] <= found.scores[:, :-1]).all()
    after = np.arange(9) >= found.lengths[..., None]
    assert (found.tokens[after] == PAD).all() and (found.log_probs[after] == 0).all()


@searches
def test_a_result_does_not_depend_on_the_batch(decoder, search):
    options = Options(max_length=9, beam_size=3, n_best=3, length_penalty="gnmt", alpha=0.6)
    together = search(decoder, options, examples=[2, 0, 3, 1], max_lengths=LIMITS)
    for i, example in enumerate([2, 0, 3, 1]):
        alone = search(decoder, options, examples=[example], max_lengths=LIMITS[i : i + 1])
        assert_same(alone, jax.tree.map(lambda x, i=i: x[i : i + 1], together))


@pytest.mark.parametrize(("search", "penalty"), [(beams, "none"), (beams, "average"), (samples, "gnmt")])
def test_scoring_a_searchs_output_gives_its_scores(decoder, search, penalty):
    options = Options(max_length=9, beam_size=3, n_best=3, length_penalty=penalty, alpha=0.6)
    found = search(decoder, options)
    logits = [[decoder.logits(example, tokens) for tokens in found.tokens[example]] for example in EXAMPLES]
    assert_same(score(jnp.asarray(logits), jnp.asarray(found.tokens), options), found)


def test_score_by_hand():
    logits = np.log([[[0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.4, 0.1], [0.7, 0.1, 0.1, 0.1]]])
    options = Options(max_length=3, length_penalty="gnmt", alpha=2.0)
    found = score(jnp.asarray(logits), jnp.array([[3, EOS, PAD]]), options)
    np.testing.assert_allclose(found.log_probs, [[np.log(0.4), np.log(0.4), 0]], rtol=1e-6)
    np.testing.assert_allclose(found.scores, [2 * np.log(0.4) / (7 / 6) ** 2], rtol=1e-6)
    assert found.lengths.tolist() == [2]


def test_arrays_shared_by_hypotheses_may_stay_out_of_the_cache(decoder):
    options = Options(max_length=9, beam_size=3, n_best=3)
    cache = decoder.cache(EXAMPLES)
    context = expand(cache.pop("context"), 3)

    def step(cache, token, position):
        logits, cache = decoder.step({**cache, "context": context}, token, position)
        return logits, {"state": cache["state"]}

    assert_same(compiled(beam_search, step, cache, options), run(beam_search, decoder, options))


@pytest.mark.parametrize("search", [greedy, beam_search])
def test_steps_count_from_bos_and_stop_once_all_examples_have_finished(decoder, search):
    calls = []

    def step(cache, token, position):
        jax.debug.callback(lambda *call: calls.append([x.tolist() for x in call]), token, position, ordered=True)
        return decoder.step(cache, token, position)

    found = compiled(search, step, decoder.cache([0, 1]), Options(max_length=30), max_lengths=jnp.array([3, 5]))
    jax.effects_barrier()
    assert calls[0][0] == [BOS, BOS]
    assert [position for _, position in calls] == list(range(found.lengths.max()))
    longest = int(found.lengths[:, 0].argmax())
    assert [token[longest] for token, _ in calls] == [BOS, *found.tokens[longest, 0, : len(calls) - 1].tolist()]


def test_compiles_once(decoder):
    traced = []

    @functools.partial(jax.jit, static_argnames="options")
    def search(cache, max_lengths, prefix, options):
        traced.append(options)
        return beam_search(decoder.step, cache, options, max_lengths=max_lengths, prefix=prefix)

    for examples, longest in ([0, 1], 4), ([2, 3], 6):
        options = Options(max_length=9, beam_size=2)
        search(decoder.cache(examples), jnp.array([longest, 2]), jnp.array([[longest % 2 + 3], [PAD]]), options)
    assert len(traced) == 1


def test_the_cpu_does_not_sort_the_vocabulary(decoder):
    # XLA replaces its fast top-k by a full sort if the result is, for example, sliced.
    options = Options(max_length=9, beam_size=3, n_best=2)
    program = compiled.lower(beam_search, decoder.step, decoder.cache(EXAMPLES), options).compile().as_text()
    assert "TopK" in program and " sort(" not in program


def test_a_forced_end_leaves_one_hypothesis(decoder):
    prefix = jnp.array([[4, EOS, 3]] * 4)
    found = run(beam_search, decoder, Options(max_length=9, min_length=5, beam_size=3, n_best=3), prefix=prefix)
    assert (found.lengths == [2, 0, 0]).all()
    assert (found.tokens[:, 0, :3] == [4, EOS, PAD]).all()


def test_a_prefix_may_be_longer_than_the_output(decoder):
    options = Options(max_length=2, beam_size=2)
    found = run(beam_search, decoder, options, prefix=jnp.array([[4, 5, 3]] * 4))
    assert (found.tokens[:, 0] == [4, EOS]).all()


@pytest.mark.parametrize("search", [greedy, beam_search])
def test_a_model_that_gives_nan_finds_nothing(decoder, search):
    def step(cache, token, position):
        logits, cache = decoder.step(cache, token, position)
        return jnp.where(jnp.arange(2)[:, None] == 0, jnp.nan, logits), cache

    found = compiled(search, step, decoder.cache([0, 1]), Options(max_length=5))
    assert found.lengths[0] == 0 and found.scores[0] == -np.inf and (found.tokens[0] == PAD).all()
    assert found.lengths[1] > 0 and np.isfinite(found.scores[1])


def test_bos_may_be_eos(decoder):
    options = Options(max_length=6, bos=EOS)
    found = run(beam_search, decoder, options)
    assert_same(found, run(greedy, decoder, options))
    assert (found.lengths > 0).all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(max_length=0), "at least 1"),
        (dict(min_length=7), "from 1 to max_length, 6"),
        (dict(beam_size=0), "at least 1"),
        (dict(beam_size=2, n_best=3), "from 1 to beam_size, 2"),
        (dict(length_penalty="gnmtt"), "did you mean 'gnmt'"),
        (dict(no_repeat_ngram=-1), "0 for none"),
        (dict(pad=2), "must differ"),
    ],
)
def test_impossible_options(fields, message):
    with pytest.raises(UserError, match=message):
        Options(**{"max_length": 6, **fields})


def test_impossible_searches(decoder):
    cache, rngs = decoder.cache(EXAMPLES), jax.random.split(jax.random.key(0), 4)
    with pytest.raises(UserError, match="no beam"):
        greedy(decoder.step, cache, Options(max_length=6, beam_size=2))
    for wrong in dict(num_samples=0), dict(temperature=0.0), dict(top_k=-1), dict(top_p=0.0), dict(top_p=1.5):
        with pytest.raises(UserError, match=next(iter(wrong))):
            SamplingOptions(**wrong)
    with pytest.raises(UserError, match="no beam"):
        sample(decoder.step, cache, Options(max_length=6, beam_size=2), SamplingOptions(), rngs)
    with pytest.raises(ValueError, match="leading axis"):
        greedy(decoder.step, {**cache, "index": jnp.zeros(())}, Options(max_length=6))


def test_early_stopping_may_lose_the_most_probable_output():
    """For six steps one token has probability 0.9, and all others, eos included, 0.02."""
    logits = jnp.log(jnp.full((6, 6), 0.02).at[jnp.arange(6), [3, 4, 3, 4, 3, EOS]].set(0.9))
    calls = []

    def step(cache, token, position):
        jax.debug.callback(lambda position: calls.append(int(position)), position)
        return jnp.broadcast_to(logits[jnp.minimum(position, 5)], (token.size, 6)), cache

    options = Options(max_length=50, beam_size=2, length_penalty="gnmt", alpha=0.6)
    found = compiled(beam_search, step, jnp.zeros(1), options)
    assert row(found, 0) == [3, 4, 3, 4, 3, EOS]
    jax.effects_barrier()
    assert max(calls) < 10  # not up to max_length
    early = compiled(beam_search, step, jnp.zeros(1), dataclasses.replace(options, early_stopping=True))
    assert early.lengths[0, 0] < 6 and early.scores[0, 0] < found.scores[0, 0] - 1
