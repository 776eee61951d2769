"""One training step and one evaluation step, pure; `parallel.py` maps them over devices."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from attnjax.training.state import TrainState

AXIS = "data"


def make_train_step(task, optimizer: optax.GradientTransformation, schedule: optax.Schedule, ema_decay: float):
    """Returns train_step(state, batch, axis_name=None) -> (state, metrics).

    With an axis name, `batch` is this device's share: sums of gradients, losses and weights are added over the axis
    before dividing, so the result is that of the whole batch on one device. Metrics are name -> (sum, weight).
    """

    def train_step(state: TrainState, batch: dict, axis_name: str | None = None):
        rng = jax.random.fold_in(state.rng, state.step)
        if axis_name:
            rng = jax.random.fold_in(rng, jax.lax.axis_index(axis_name))
        gradient = jax.grad(task.loss, has_aux=True)
        gradients, (weight, metrics, model_state) = gradient(state.params, state.model_state, batch, rng)
        if axis_name:
            gradients, weight, metrics = jax.lax.psum((gradients, weight, metrics), axis_name)
        gradients = jax.tree.map(lambda g: g / jnp.maximum(weight, 1), gradients)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        one = jnp.ones(())
        metrics |= {
            "gradient_norm": (optax.tree.norm(gradients), one),
            "learning_rate": (jnp.asarray(schedule(state.step), jnp.float32), one),
        }
        new_state = state.replace(
            step=state.step + 1,
            params=params,
            model_state=model_state,
            opt_state=opt_state,
            ema=_update_ema(state, params, ema_decay),
        )
        return new_state, metrics

    return train_step


def _update_ema(state, params, decay):
    if state.ema is None:
        return None
    # The first steps average over fewer weights, so that the random start is soon forgotten.
    decay = jnp.minimum(decay, (1.0 + state.step) / (10.0 + state.step))
    return optax.incremental_update(params, state.ema, 1 - decay)


def make_eval_step(task) -> Callable:
    """Returns eval_step(variables, batch, axis_name=None) -> metrics, for variables (params, model_state)."""

    def eval_step(variables, batch: dict, axis_name: str | None = None):
        metrics = task.evaluate(*variables, batch)
        return jax.lax.psum(metrics, axis_name) if axis_name else metrics

    return eval_step
