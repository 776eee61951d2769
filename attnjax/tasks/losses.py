"""Cross-entropy with smoothed labels, in the three forms that published translation results use."""

import jax
import jax.numpy as jnp

from attnjax.errors import UserError, nearest


def _fairseq(log_p, nll, smoothing, pad):
    """fairseq: mass s / (V - 1) on every wrong class, padding's among them; it logs this in base 2."""
    classes = log_p.shape[-1]
    share = smoothing / (classes - 1)
    return (1 - smoothing - share) * nll - share * log_p.sum(-1)


def _joeynmt(log_p, nll, smoothing, pad):
    """JoeyNMT, and OpenNMT-py before 2024: mass s / (V - 2) on wrong classes but padding; as a KL divergence."""
    classes = log_p.shape[-1]
    share = smoothing / (classes - 2)
    wrong = log_p.sum(-1) + nll - log_p[..., pad]
    entropy = (1 - smoothing) * jnp.log(1 - smoothing) + smoothing * jnp.log(share) if smoothing else 0.0
    return (1 - smoothing) * nll - share * wrong + entropy


def _uniform(log_p, nll, smoothing, pad):
    """Szegedy et al. 2016, torch and Hugging Face: mass s / V on every class, the right one too."""
    return (1 - smoothing) * nll - smoothing * log_p.mean(-1)


SMOOTHINGS = {"fairseq": _fairseq, "joeynmt": _joeynmt, "uniform": _uniform}


def token_losses(logits, targets, *, smoothing: float = 0.0, form: str = "uniform", pad: int = 0):
    """Returns the smoothed loss and the plain negative log-likelihood of each token, both 0 where the target is `pad`.

    logits (..., V) float32, targets (...) int32; results (...) float32, in nats. The forms are three different losses:
    compare runs by the second result.
    """
    if form not in SMOOTHINGS:
        raise UserError(f"unknown label smoothing '{form}', {nearest(form, SMOOTHINGS)}")
    log_p = jax.nn.log_softmax(logits)
    nll = -jnp.take_along_axis(log_p, targets[..., None], -1)[..., 0]
    tokens = targets != pad
    return SMOOTHINGS[form](log_p, nll, smoothing, pad) * tokens, nll * tokens
