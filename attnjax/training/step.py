"""One training step and one evaluation step, pure; `parallel.py` maps them over devices."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from attnjax.training.state import TrainState

AXIS = "data"


def make_train_step(
    task, optimizer: optax.GradientTransformation, schedule: optax.Schedule, ema_decay: float, accumulate: int = 1
):
    """Returns train_step(state, batch, axis_name=None, gather=None) -> (state, metrics).

    With an axis name, `batch` is this device's share: sums of gradients, losses and weights are added over the axis
    before dividing, so the result is that of the whole batch on one device. `accumulate` takes the rows in so many
    equal parts, every so many-th row in each, one after another, and adds their sums likewise: the parts are the same
    rows however many devices share them. `gather` brings parameters, which lie cut over the devices, to where the loss
    is computed with them. Metrics are name -> (sum, weight).
    """

    def train_step(state: TrainState, batch: dict, axis_name: str | None = None, gather: Callable | None = None):
        sums = _accumulated(_sums(task, gather), accumulate)
        rng = jax.random.fold_in(state.rng, state.step)
        if axis_name:
            rng = jax.random.fold_in(rng, jax.lax.axis_index(axis_name))
        (gradients, weight, metrics), model_state = sums(state.params, state.model_state, batch, rng)
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


def _sums(task, gather):
    """Returns sums(params, model_state, batch, rng) -> ((gradients, weight, metrics), model_state)."""

    def loss(params, *inputs):
        return task.loss(gather(params) if gather else params, *inputs)

    def sums(params, model_state, batch, rng):
        gradients, (weight, metrics, model_state) = jax.grad(loss, has_aux=True)(params, model_state, batch, rng)
        return (gradients, weight, metrics), model_state

    return sums


def _accumulated(sums, parts):
    """Returns `sums` over `parts` equal parts of the batch, one after another: activations are those of one part."""
    if parts == 1:
        return sums

    def over_parts(params, model_state, batch, rng):
        batch = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)
        first = jax.tree.map(lambda x: x[0], batch)
        shapes, _ = jax.eval_shape(sums, params, model_state, first, rng)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

        def add(carry, part):
            total, model_state = carry
            index, batch = part
            new, model_state = sums(params, model_state, batch, jax.random.fold_in(rng, index))
            return (jax.tree.map(jnp.add, total, new), model_state), None

        return jax.lax.scan(add, (zeros, model_state), (jnp.arange(parts), batch))[0]

    return over_parts


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
