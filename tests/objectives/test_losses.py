import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.errors import UserError
from attnjax.objectives.losses import SMOOTHINGS, token_losses

LOGITS = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 7)), jnp.float32)
TARGETS = jnp.array([[3, 1, 6, 2], [5, 4, 0, 0]])


def smoothed_rows(form, smoothing, classes, target, pad=0):
    """The target distribution of each form, as its authors state it."""
    row = np.zeros(classes)
    if form == "fairseq":
        row[:], row[target] = smoothing / (classes - 1), 1 - smoothing
    elif form == "joeynmt":
        row[:], row[target], row[pad] = smoothing / (classes - 2), 1 - smoothing, 0
    else:
        row[:] = smoothing / classes
        row[target] += 1 - smoothing
    return row


@pytest.mark.parametrize("form", SMOOTHINGS)
def test_each_form_is_cross_entropy_with_its_distribution(form):
    log_p = np.asarray(LOGITS) - np.log(np.exp(np.asarray(LOGITS)).sum(-1, keepdims=True))
    losses, _ = token_losses(LOGITS, TARGETS, smoothing=0.1, form=form)
    for place in np.ndindex(2, 4):
        target = int(TARGETS[place])
        q = smoothed_rows(form, 0.1, 7, target)
        entropy = (q[q > 0] * np.log(q[q > 0])).sum() if form == "joeynmt" else 0.0
        expected = 0.0 if target == 0 else entropy - (q * log_p[place]).sum()
        np.testing.assert_allclose(losses[place], expected, atol=1e-5)


@pytest.mark.parametrize("form", SMOOTHINGS)
def test_without_smoothing_all_forms_are_the_negative_log_likelihood(form):
    losses, nll = token_losses(LOGITS, TARGETS, form=form)
    np.testing.assert_allclose(losses, nll, atol=1e-6)
    np.testing.assert_array_equal(nll[TARGETS == 0], 0)


def test_joeynmts_published_example():
    """JoeyNMT's test/unit/test_loss.py: V = 5; smoothing 0.4 gives 2.1326, no smoothing 5.6268."""
    logits = jnp.log(jnp.array([0.1, 0.1, 0.6, 0.1, 0.1])) + jnp.zeros((3, 2, 1))
    targets = jnp.array([[2, 1], [2, 0], [1, 0]])
    smoothed, plain = token_losses(logits, targets, smoothing=0.4, form="joeynmt")
    np.testing.assert_allclose(smoothed.sum(), 2.1326, atol=5e-5)
    np.testing.assert_allclose(plain.sum(), 5.6268, atol=5e-5)


def test_unknown_form():
    with pytest.raises(UserError, match="did you mean 'fairseq'"):
        token_losses(LOGITS, TARGETS, form="fairsec")
