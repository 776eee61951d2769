"""Image classification."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from attnjax.metrics.sums import Metrics
from attnjax.nn.freezing import check_frozen, frozen_parts, without_gradients
from attnjax.nn.norm import counting_rows
from attnjax.objectives import Batch, LossAndAux, PyTree


@dataclasses.dataclass(frozen=True)
class ClassificationObjective:
    """Softmax cross-entropy over classes.

    Batches: image (B, H, W, C) float32, label (B,) int32, mask (B,) bool, False for padding rows; with mixup or CutMix
    also label_other (B,) int32 and label_weight (B,) float32, the weight of `label` against it.
    """

    model: nn.Module
    label_smoothing: float = 0.0  # s of the target (1 - s) * one_hot + s / num_classes (Szegedy et al. 2016, section 7)
    frozen: tuple[str, ...] = ()  # parts of the model that are not trained; see `nn.freezing`
    masks: bool = True  # whether training batches may have masked rows, which batch statistics then leave out

    def __post_init__(self):
        check_frozen(self.model, self.frozen)

    def init(self, rng: jax.Array, batch: dict[str, jax.ShapeDtypeStruct]) -> tuple[PyTree, PyTree]:
        """Returns parameters and model state (batch statistics, or empty) for a batch of these shapes."""
        variables = dict(jax.jit(self.model.init)(rng, jnp.zeros(batch["image"].shape, jnp.float32)))
        return variables.pop("params"), variables

    def logits(self, params: PyTree, model_state: PyTree, image: jax.Array) -> jax.Array:
        """(B, H, W, C) -> (B, num_classes) float32, in evaluation mode."""
        return self._apply(params, model_state, image, train=False)

    def loss(self, params: PyTree, model_state: PyTree, batch: Batch, rng: jax.Array) -> LossAndAux:
        """Returns (sum of losses, (weight, metrics, new model state)), in training mode; the weight counts images."""
        options = {"train": True, "rngs": {"dropout": rng}, "mutable": list(model_state)}
        params = without_gradients(params, self.frozen)
        with frozen_parts(self.frozen), counting_rows(batch["mask"] if self.masks else None):
            logits, new_state = self._apply(params, model_state, batch["image"], **options)
        target = jax.nn.one_hot(batch["label"], logits.shape[-1])
        if "label_other" in batch:
            share = batch["label_weight"][:, None]
            target = share * target + (1 - share) * jax.nn.one_hot(batch["label_other"], logits.shape[-1])
        target = optax.smooth_labels(target, self.label_smoothing)
        mask = batch["mask"].astype(jnp.float32)
        total = (optax.softmax_cross_entropy(logits, target) * mask).sum()
        metrics = _metrics(logits, batch)
        # The negative log-likelihood, without smoothing, is what validation calls its loss.
        metrics = metrics | {"loss": (total, mask.sum()), "nll": metrics["loss"]}
        return total, (mask.sum(), metrics, new_state)

    def evaluate(self, params: PyTree, model_state: PyTree, batch: Batch) -> Metrics:
        """Returns the sums over images of loss, without label smoothing, and accuracy, in evaluation mode."""
        return _metrics(self.logits(params, model_state, batch["image"]), batch)

    def _apply(self, params, model_state, image, **options):
        return self.model.apply({"params": params, **model_state}, image, **options)


def _metrics(logits, batch):
    mask = batch["mask"].astype(jnp.float32)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
    correct = logits.argmax(-1) == batch["label"]
    return {"loss": ((losses * mask).sum(), mask.sum()), "accuracy": ((correct * mask).sum(), mask.sum())}
