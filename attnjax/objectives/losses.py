"""Token cross-entropy with label smoothing, in the three forms behind published translation results.

They are different losses, not comparable with each other. V is the vocabulary size, s the smoothing.
"""

import jax
import jax.numpy as jnp

from attnjax.errors import check_choice


def _fairseq(nll, total, pad_log_p, classes, smoothing):
    """fairseq: probability s / (V - 1) for every wrong token, pad included. fairseq logs bits, these are nats."""
    share = smoothing / (classes - 1)
    return (1 - smoothing - share) * nll - share * total


def _joeynmt(nll, total, pad_log_p, classes, smoothing):
    """JoeyNMT, OpenNMT-py before 2024: s / (V - 2) for every wrong token except pad; the loss is a KL divergence."""
    share = smoothing / (classes - 2)
    wrong = total + nll - pad_log_p
    entropy = (1 - smoothing) * jnp.log(1 - smoothing) + smoothing * jnp.log(share) if smoothing else 0.0
    return (1 - smoothing) * nll - share * wrong + entropy


def _uniform(nll, total, pad_log_p, classes, smoothing):
    """Szegedy et al. 2016, torch and Hugging Face: s / V for every token, the right one included."""
    return (1 - smoothing) * nll - smoothing * total / classes


SMOOTHINGS = {"fairseq": _fairseq, "joeynmt": _joeynmt, "uniform": _uniform}


def token_losses(
    logits: jax.Array, targets: jax.Array, *, smoothing: float = 0.0, form: str = "uniform", pad: int = 0
) -> tuple[jax.Array, jax.Array]:
    """Returns each token's smoothed loss and negative log-likelihood in nats, both 0 where the target is `pad`.

    logits (..., V) float32, targets (...) int32; both results (...) float32. Compare runs with different smoothing by
    the second. UserError for an unknown form.
    """
    check_choice("label smoothing", form, SMOOTHINGS)
    # Sums over the vocabulary: an array of log-probabilities would be the largest of the training step.
    classes = logits.shape[-1]
    normaliser = jax.nn.logsumexp(logits, -1)
    nll = normaliser - logits_at(logits, targets)
    total = logits.sum(-1) - classes * normaliser
    tokens = targets != pad
    return SMOOTHINGS[form](nll, total, logits[..., pad] - normaliser, classes, smoothing) * tokens, nll * tokens


@jax.custom_vjp
def logits_at(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns logits[..., target], for logits (..., V) and targets (...) int32.

    The gradient is a comparison, which the compiler fuses with the rest of the loss's. That of indexing is a scatter,
    which reads and writes an array of the logits' size.
    """
    return jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]


def _logits_at_backward(saved, gradient):
    logits, targets = saved
    chosen = jnp.arange(logits.shape[-1]) == targets[..., None]
    return jnp.where(chosen, gradient[..., None], 0).astype(logits.dtype), None


logits_at.defvjp(lambda logits, targets: (logits_at(logits, targets), (logits, targets)), _logits_at_backward)
