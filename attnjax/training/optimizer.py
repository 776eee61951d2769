"""Optimizers, learning-rate schedules and which weights decay, from a config's `optimizer` group."""

import re

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from attnjax.errors import UserError, nearest

NO_DECAY = re.compile(r"(bias|scale|gate\d*|class_token|positions/\w+)$")


def decay_mask(params):
    """Returns a tree of booleans: True for weights that decay, False for biases, norms, class tokens, positions."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: not NO_DECAY.search(jax.tree_util.keystr(path, simple=True, separator="/")), params
    )


def _constant(config, steps):
    return optax.constant_schedule(config.learning_rate)


def _cosine(config, steps):
    start, end = config.learning_rate, config.end_learning_rate
    return lambda step: end + (start - end) * 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(step / max(1, steps), 0, 1)))


def _linear(config, steps):
    return optax.linear_schedule(config.learning_rate, config.end_learning_rate, max(1, steps))


def _inverse_sqrt(config, steps):
    """fairseq's inverse_sqrt: peak * sqrt(warmup / step) after the warm-up."""
    warmup = max(1, config.warmup_steps)
    return lambda step: config.learning_rate * jnp.sqrt(warmup / (jnp.maximum(step, 0) + warmup))


_DECAYS = {"constant": _constant, "cosine": _cosine, "linear": _linear, "inverse_sqrt": _inverse_sqrt}


def noam(factor: float, width: int, warmup_steps: int) -> optax.Schedule:
    """Returns Vaswani et al.'s (2017, equation 3): factor * width^-0.5 * min(s^-0.5, s * warmup^-1.5), s from 1."""

    def schedule(count):
        step = count + 1.0  # Optax counts from 0, the paper from 1
        return factor * width**-0.5 * jnp.minimum(step**-0.5, step * max(1, warmup_steps) ** -1.5)

    return schedule


def make_schedule(config: ConfigDict, steps: int) -> optax.Schedule:
    """Returns step (from 0) -> learning rate: a linear warm-up from 0, then `config.schedule` to the last step."""
    if config.schedule == "noam":
        return noam(config.learning_rate, config.noam_width, config.warmup_steps)
    if config.schedule not in _DECAYS:
        raise UserError(f"unknown schedule '{config.schedule}', {nearest(config.schedule, [*_DECAYS, 'noam'])}")
    warmup = config.warmup_steps
    if warmup >= steps > 0:
        raise UserError(f"optimizer.warmup_steps={warmup} leaves nothing of {steps} steps; choose fewer")
    decay = _DECAYS[config.schedule](config, steps - warmup)
    if not warmup:
        return decay
    return optax.join_schedules([optax.linear_schedule(0.0, config.learning_rate, warmup), decay], [warmup])


def _sgd(config, schedule):
    """SGD with momentum; the decay joins the gradient before the momentum, as in He et al. (2015)."""
    return optax.chain(
        optax.add_decayed_weights(config.weight_decay, decay_mask),
        optax.sgd(schedule, config.momentum or None, config.nesterov),
    )


def _adam(config, schedule):
    if config.weight_decay:
        raise UserError("optimizer.weight_decay needs adamw, lamb or sgd; adam has none")
    return optax.adam(schedule, config.b1, config.b2, config.epsilon)


def _adamw(config, schedule):
    return optax.adamw(
        schedule, config.b1, config.b2, config.epsilon, weight_decay=config.weight_decay, mask=decay_mask
    )


def _lamb(config, schedule):
    return optax.lamb(schedule, config.b1, config.b2, config.epsilon, weight_decay=config.weight_decay, mask=decay_mask)


OPTIMIZERS = {"sgd": _sgd, "adam": _adam, "adamw": _adamw, "lamb": _lamb}


def make_optimizer(config: ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Returns the Optax transformation: clipping by global norm, if any, then the named optimizer.

    UserError for an unknown name, and, when it meets the parameters, for a part in `freeze` that they do not have.
    """
    if config.name not in OPTIMIZERS:
        raise UserError(f"unknown optimizer '{config.name}', {nearest(config.name, OPTIMIZERS)}")
    optimizer = OPTIMIZERS[config.name](config, schedule)
    if config.clip_norm:
        optimizer = optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)
    if not config.freeze:
        return optimizer

    def labels(params):
        for name in config.freeze:
            if name not in params:
                raise UserError(f"optimizer.freeze names '{name}', {nearest(name, params)}")
        return {name: name in config.freeze for name in params}

    return optax.multi_transform({False: optimizer, True: optax.set_to_zero()}, labels)
