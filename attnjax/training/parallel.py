"""Maps a step over the devices: jit on one, pmap (data parallel) over several. Nothing else knows which."""

from collections.abc import Callable
from functools import partial

import jax

from attnjax.errors import UserError
from attnjax.training.step import AXIS


def check_batch_size(name: str, batch_size: int, accumulate: int = 1) -> None:
    """Raises UserError if a batch does not divide evenly over the devices and accumulated parts."""
    multiple = rows_multiple(accumulate)
    if batch_size % multiple:
        parts = f" in {accumulate} parts" if accumulate > 1 else ""
        over = f"{jax.device_count()} devices{parts}"
        raise UserError(f"{name}={batch_size} does not divide over {over}; use a multiple of {multiple}")


def rows_multiple(accumulate: int = 1) -> int:
    """Returns what a batch's rows must be a multiple of, to divide over devices and accumulated parts.

    UserError if there are no parts.
    """
    if accumulate < 1:
        raise UserError(f"accumulate={accumulate}: it should be 1 or more")
    return jax.device_count() * accumulate


def describe() -> str:
    """Returns one line on the devices and how a batch is spread over them."""
    device = jax.devices()[0]
    kind = "jit, one device" if jax.device_count() == 1 else f"pmap, data parallel over {jax.device_count()}"
    return f"{jax.device_count()} x {device.device_kind} ({device.platform}), {kind}, {jax.process_count()} process(es)"


def data_parallel(step: Callable, *, donate: bool = False) -> Callable:
    """Returns `step(replicated, batch)` compiled for all local devices; results are the whole batch's, un-stacked.

    Args:
      step: takes a replicated tree, a batch and `axis_name`; must itself reduce over the axis.
      donate: lets the first argument's memory be reused for the result.
    """
    donated = (0,) if donate else ()
    devices = jax.local_device_count()
    if jax.device_count() == 1:
        return jax.jit(step, donate_argnums=donated)
    mapped = jax.pmap(
        partial(step, axis_name=AXIS), axis_name=AXIS, in_axes=(None, 0), out_axes=None, donate_argnums=donated
    )

    return lambda replicated, batch: mapped(replicated, _split(batch, devices))


def per_example(function: Callable) -> Callable:
    """Returns `function(replicated, batch)`, whose results have the batch as leading axis, over all local devices."""
    devices = jax.local_device_count()
    if jax.device_count() == 1:
        return jax.jit(function)
    mapped = jax.pmap(function, in_axes=(None, 0))

    def call(replicated, batch):
        results = mapped(replicated, _split(batch, devices))
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), results)

    return call


def _split(batch, devices):
    return jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), batch)
