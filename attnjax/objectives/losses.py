"""Cross-entropy with smoothed labels, in the three forms that published translation results use."""

import jax
import jax.numpy as jnp

from attnjax.errors import UserError, nearest


def _fairseq(nll, total, pad_log_p, classes, smoothing):
    """fairseq: mass s / (V - 1) on every wrong class, padding's among them; it logs this in base 2."""
    share = smoothing / (classes - 1)
    return (1 - smoothing - share) * nll - share * total


def _joeynmt(nll, total, pad_log_p, classes, smoothing):
    """JoeyNMT, and OpenNMT-py before 2024: mass s / (V - 2) on wrong classes but padding; as a KL divergence."""
    share = smoothing / (classes - 2)
    wrong = total + nll - pad_log_p
    entropy = (1 - smoothing) * jnp.log(1 - smoothing) + smoothing * jnp.log(share) if smoothing else 0.0
    return (1 - smoothing) * nll - share * wrong + entropy


def _uniform(nll, total, pad_log_p, classes, smoothing):
    """Szegedy et al. 2016, torch and Hugging Face: mass s / V on every class, the right one too."""
    return (1 - smoothing) * nll - smoothing * total / classes


SMOOTHINGS = {"fairseq": _fairseq, "joeynmt": _joeynmt, "uniform": _uniform}


def token_losses(logits, targets, *, smoothing: float = 0.0, form: str = "uniform", pad: int = 0):
    """Returns the smoothed loss and the plain negative log-likelihood of each token, both 0 where the target is `pad`.

    logits (..., V) float32, targets (...) int32; results (...) float32, in nats. The forms are three different losses:
    compare runs by the second result.
    """
    if form not in SMOOTHINGS:
        raise UserError(f"unknown label smoothing '{form}', {nearest(form, SMOOTHINGS)}")
    # By sums over classes, not by the array of log-probabilities: it is the largest of a training step.
    classes = logits.shape[-1]
    normaliser = jax.nn.logsumexp(logits, -1)
    nll = normaliser - jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]
    total = logits.sum(-1) - classes * normaliser
    tokens = targets != pad
    return SMOOTHINGS[form](nll, total, logits[..., pad] - normaliser, classes, smoothing) * tokens, nll * tokens
