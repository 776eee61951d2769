"""One training step and one evaluation step, as pure functions; `devices.py` maps them over devices."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from attnjax.objectives import Objective
from attnjax.training.state import TrainState

PyTree = Any
Prepare = Callable[[dict], dict]
Sums = tuple[PyTree, jax.Array, dict]  # summed gradients, their weight, metrics: name -> (sum, weight)


def _unchanged(batch):
    return batch


@dataclasses.dataclass(frozen=True)
class TrainStep:
    """A pure function (state, batch) -> (state, metrics); metrics are name -> (sum, weight).

    After the preparation of the batch it has two halves. `sums` adds up gradients and metrics over the rows that it is
    given, `update` divides by the total weight and applies the optimizer. Sums of parts add up to those of the batch,
    so any number of devices and microbatches gives the same step: data parallelism is an all-reduce between the halves.
    """

    objective: Objective
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    ema_decay: float = 0.0
    accumulate: int = 1  # microbatches whose gradients are accumulated
    prepare: Prepare = _unchanged  # the part of preprocessing that the device does, on the whole batch

    def __call__(self, state: TrainState, batch: dict) -> tuple[TrainState, dict]:
        return self.update(state, *self.sums(state, self.prepare(batch)))

    def sums(self, state: TrainState, batch: dict) -> tuple[Sums, PyTree]:
        """Returns the sums over a prepared batch's rows, and the new model state (batch statistics)."""
        rng = jax.random.fold_in(state.rng, state.step)
        if self.accumulate == 1:
            return self._sums(state.params, state.model_state, batch, rng)
        return self._accumulated(state.params, state.model_state, batch, rng)

    def update(self, state: TrainState, sums: Sums, model_state: PyTree) -> tuple[TrainState, dict]:
        """Returns the state after one optimizer step, and the metrics."""
        gradients, weight, metrics = sums
        gradients = jax.tree.map(lambda g: g / jnp.maximum(weight, 1), gradients)
        updates, opt_state = self.optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        one = jnp.ones(())
        metrics = metrics | {
            "gradient_norm": (optax.tree.norm(gradients), one),
            "learning_rate": (jnp.asarray(self.schedule(state.step), jnp.float32), one),
        }
        new_state = state.replace(
            step=state.step + 1,
            params=params,
            model_state=model_state,
            opt_state=opt_state,
            ema=_update_ema(state, params, self.ema_decay),
        )
        return new_state, metrics

    def _sums(self, params, model_state, batch, rng):
        gradient = jax.grad(self.objective.loss, has_aux=True)
        gradients, (weight, metrics, model_state) = gradient(params, model_state, batch, rng)
        return (gradients, weight, metrics), model_state

    def _accumulated(self, params, model_state, batch, rng):
        """The same sums over equal microbatches, one after another: activations take the memory of one of them.

        Microbatch i has the rows i, i + accumulate, ...: the same rows, however many devices share the batch.
        """
        parts = self.accumulate
        batch = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)
        first = jax.tree.map(lambda x: x[0], batch)
        shapes, _ = jax.eval_shape(self._sums, params, model_state, first, rng)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

        def add(carry, part):
            total, model_state = carry
            index, microbatch = part
            new, model_state = self._sums(params, model_state, microbatch, jax.random.fold_in(rng, index))
            return (jax.tree.map(jnp.add, total, new), model_state), None

        return jax.lax.scan(add, (zeros, model_state), (jnp.arange(parts), batch))[0]


def _update_ema(state, params, decay):
    if state.ema is None:
        return None
    # The first steps average over fewer weights, so that the random initialization is soon forgotten.
    decay = jnp.minimum(decay, (1.0 + state.step) / (10.0 + state.step))
    return optax.incremental_update(params, state.ema, 1 - decay)


def make_eval_step(
    objective: Objective, prepare: Prepare = _unchanged
) -> Callable[[tuple[PyTree, PyTree], dict], dict]:
    """Returns eval_step(variables, batch) -> metrics, name -> (sum, weight), for variables (params, model_state)."""
    return lambda variables, batch: objective.evaluate(*variables, prepare(batch))
