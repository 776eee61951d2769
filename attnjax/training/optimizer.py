"""Optimizers, learning-rate schedules, and which weights decay."""

import dataclasses
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from attnjax.errors import UserError, nearest

NO_DECAY = re.compile(r"(bias|scale|gate\d*|class_token|positions/\w+)$")


@dataclasses.dataclass(frozen=True)
class OptimizerOptions:
    """The fields of a config's `optimizer` group."""

    name: str = "adamw"  # of OPTIMIZERS
    learning_rate: float = 1e-3  # the peak; noam: the factor before d^-0.5
    schedule: str = "cosine"  # of DECAYS, or "noam"
    warmup_steps: int = 0  # of a linear warm-up from 0
    end_learning_rate: float = 0.0  # of cosine and linear
    boundaries: tuple[int, ...] = ()  # of step: the steps at which the rate is multiplied by decay_factor
    decay_factor: float = 0.1
    noam_width: int = 512  # d_model in noam's d^-0.5
    b1: float = 0.9
    b2: float = 0.999
    epsilon: float = 1e-8
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0  # on kernels only: never on biases, norms, class tokens, position tables
    clip_norm: float = 0.0  # global norm of the gradients; 0: no clipping
    freeze: tuple[
        str, ...
    ] = ()  # parts of the model that compute as in evaluation, like ("encoder",): names as in the log


def decay_mask(params):
    """Returns a tree of booleans: True for weights that decay, False for biases, norms, class tokens, positions."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: not NO_DECAY.search(jax.tree_util.keystr(path, simple=True, separator="/")), params
    )


# Schedules: functions of (options, steps after the warm-up)


def _constant(options, steps):
    return optax.constant_schedule(options.learning_rate)


def _cosine(options, steps):
    start, end = options.learning_rate, options.end_learning_rate
    return lambda step: end + (start - end) * 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(step / max(1, steps), 0, 1)))


def _linear(options, steps):
    return optax.linear_schedule(options.learning_rate, options.end_learning_rate, max(1, steps))


def _inverse_sqrt(options, steps):
    """fairseq's inverse_sqrt: peak * sqrt(warmup / step) after the warm-up."""
    warmup = max(1, options.warmup_steps)
    return lambda step: options.learning_rate * jnp.sqrt(warmup / (jnp.maximum(step, 0) + warmup))


def _step(options, steps):
    """The rate is multiplied by `decay_factor` at each of `boundaries`."""
    at = {boundary - options.warmup_steps: options.decay_factor for boundary in options.boundaries}
    if min(at, default=1) <= 0:
        raise UserError(f"optimizer.boundaries={options.boundaries}: they should come after the warm-up")
    return optax.piecewise_constant_schedule(options.learning_rate, at)


DECAYS: dict[str, Callable[[OptimizerOptions, int], optax.Schedule]] = {
    "constant": _constant,
    "step": _step,
    "cosine": _cosine,
    "linear": _linear,
    "inverse_sqrt": _inverse_sqrt,
}


def noam(factor: float, width: int, warmup_steps: int) -> optax.Schedule:
    """Returns Vaswani et al.'s (2017, equation 3): factor * width^-0.5 * min(s^-0.5, s * warmup^-1.5), s from 1."""

    def schedule(count):
        step = count + 1.0  # Optax counts from 0, the paper from 1
        return factor * width**-0.5 * jnp.minimum(step**-0.5, step * max(1, warmup_steps) ** -1.5)

    return schedule


def make_schedule(options: OptimizerOptions, steps: int) -> optax.Schedule:
    """Returns step (from 0) -> learning rate: a linear warm-up from 0, then `options.schedule` to the last step."""
    if options.schedule == "noam":
        return noam(options.learning_rate, options.noam_width, options.warmup_steps)
    if options.schedule not in DECAYS:
        raise UserError(f"unknown schedule '{options.schedule}', {nearest(options.schedule, [*DECAYS, 'noam'])}")
    warmup = options.warmup_steps
    if warmup >= steps > 0:
        raise UserError(f"optimizer.warmup_steps={warmup} leaves nothing of {steps} steps; choose fewer")
    decay = DECAYS[options.schedule](options, steps - warmup)
    if not warmup:
        return decay
    return optax.join_schedules([optax.linear_schedule(0.0, options.learning_rate, warmup), decay], [warmup])


# Optimizers


def _sgd(options, schedule):
    """SGD with momentum; weight decay is added to the gradient before the momentum, as in He et al. (2015)."""
    return optax.chain(
        optax.add_decayed_weights(options.weight_decay, decay_mask),
        optax.sgd(schedule, options.momentum or None, options.nesterov),
    )


def _adam(options, schedule):
    if options.weight_decay:
        raise UserError("optimizer.weight_decay needs adamw, lamb or sgd; adam has none")
    return optax.adam(schedule, options.b1, options.b2, options.epsilon)


def _adamw(options, schedule):
    return optax.adamw(
        schedule, options.b1, options.b2, options.epsilon, weight_decay=options.weight_decay, mask=decay_mask
    )


def _lamb(options, schedule):
    return optax.lamb(
        schedule, options.b1, options.b2, options.epsilon, weight_decay=options.weight_decay, mask=decay_mask
    )


OPTIMIZERS: dict[str, Callable[[OptimizerOptions, optax.Schedule], optax.GradientTransformation]] = {
    "sgd": _sgd,
    "adam": _adam,
    "adamw": _adamw,
    "lamb": _lamb,
}


def make_optimizer(options: OptimizerOptions, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Returns the Optax transformation: clipping by global norm, if any, then the named optimizer.

    UserError for an unknown name and, once it sees the parameters, for a part in `freeze` that they do not have.
    """
    if options.name not in OPTIMIZERS:
        raise UserError(f"unknown optimizer '{options.name}', {nearest(options.name, OPTIMIZERS)}")
    optimizer = OPTIMIZERS[options.name](options, schedule)
    if options.clip_norm:
        optimizer = optax.chain(optax.clip_by_global_norm(options.clip_norm), optimizer)
    if not options.freeze:
        return optimizer

    def labels(params):
        for name in options.freeze:
            if name not in params:
                raise UserError(f"optimizer.freeze names '{name}', {nearest(name, params)}")
        return {name: name in options.freeze for name in params}

    return optax.multi_transform({False: optimizer, True: optax.set_to_zero()}, labels)
