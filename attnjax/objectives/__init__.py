"""What a batch means for training: its loss and metrics, as pure functions."""

from typing import Any, Protocol

import jax

from attnjax.metrics.sums import Metrics

PyTree = Any
Batch = dict[str, jax.Array]
LossAndAux = tuple[jax.Array, tuple[jax.Array, Metrics, PyTree]]  # as `Objective.loss` returns it


class Objective(Protocol):
    """What a training step and an evaluation need: a model with its loss and metrics."""

    def init(self, rng: jax.Array, batch: dict[str, jax.ShapeDtypeStruct]) -> tuple[PyTree, PyTree]:
        """Returns parameters and model state (batch statistics, or empty) for a batch of these shapes."""

    def loss(self, params: PyTree, model_state: PyTree, batch: Batch, rng: jax.Array) -> LossAndAux:
        """Returns (sum of losses, (weight, metrics, new model state)), in training mode.

        Sum and weight are added over microbatches and devices before one is divided by the other.
        """

    def evaluate(self, params: PyTree, model_state: PyTree, batch: Batch) -> Metrics:
        """Returns the metrics of a batch, in evaluation mode."""
