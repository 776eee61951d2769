"""How steps and states lie on the devices: data parallel by pmap, or on a mesh by jit. Nothing else knows which.

A step is the same pure function either way, and a batch the same rows: each process brings its share of them.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from attnjax.errors import UserError, nearest
from attnjax.training import sharding
from attnjax.training.step import AXIS

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Pmap:
    """Data parallel: each device has the whole state and a share of the batch. With one device it is plain jit."""

    def describe(self) -> str:
        """Returns a few words on how a batch is spread."""
        return "jit, one device" if jax.device_count() == 1 else f"pmap, data parallel over {self.shards}"

    @property
    def shards(self) -> int:
        """The parts that a batch's rows are cut into."""
        return jax.device_count()

    def create(self, make: Callable[[], PyTree]) -> PyTree:
        """Returns the state that `make` makes."""
        return make()

    def place(self, state: PyTree) -> PyTree:
        """Returns a state of arrays as `train_step` takes it."""
        return state

    def train_step(self, step: Callable) -> Callable:
        """Returns `step(state, batch)` compiled; the state's memory, if it can be, is used again for the new one's."""
        return self._over_batch(step, donated=(0,))

    def evaluate(self, step: Callable) -> Callable:
        """Returns `step(variables, batch)` compiled; it reduces over the axis that it is told of."""
        return self._over_batch(step)

    def per_example(self, function: Callable) -> Callable:
        """Returns `function(variables, batch)` compiled, whose results have the batch as leading axis.

        Every process brings the whole batch, and gets the whole result.
        """
        if jax.device_count() == 1:
            return jax.jit(function)
        mapped = jax.pmap(function, in_axes=(None, 0))

        def call(variables, batch):
            results = mapped(variables, _split(batch))
            return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), results)

        return call

    def lower(self, step: Callable, state: PyTree, batch: PyTree):
        """Returns the training step lowered for shapes: the whole state's, and this process's share of a batch."""
        if jax.device_count() == 1:
            return jax.jit(step, donate_argnums=0).lower(state, batch)
        count = jax.local_device_count()
        split = jax.tree.map(lambda x: jax.ShapeDtypeStruct((count, len(x) // count, *x.shape[1:]), x.dtype), batch)
        return self._mapped(step, (0,)).lower(state, split)

    def state_bytes(self, state: PyTree) -> int:
        """Returns the bytes that a state, of arrays or shapes, takes on each device."""
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))

    def _mapped(self, step, donated):
        named = partial(step, axis_name=AXIS)
        # Of several processes' arrays, which it puts together and takes apart, pmap loses those given away.
        donated = donated if jax.process_count() == 1 else ()
        return jax.pmap(named, axis_name=AXIS, in_axes=(None, 0), out_axes=None, donate_argnums=donated)

    def _over_batch(self, step, donated=()):
        if jax.device_count() == 1:
            return jax.jit(step, donate_argnums=donated)
        mapped = self._mapped(step, donated)
        return lambda state, batch: mapped(state, _split(batch))


def _split(batch):
    count = jax.local_device_count()
    return jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), batch)


@dataclasses.dataclass(frozen=True)
class Mesh:
    """jit on a mesh of `data` x `fsdp` x `tensor` devices; `sharding.RULES` of the model say where the state lies.

    The methods are those of `Pmap`.
    """

    model: str  # its name
    data: int
    fsdp: int
    tensor: int

    @functools.cached_property
    def mesh(self) -> jax.sharding.Mesh:
        sizes = (self.data, self.fsdp, self.tensor)
        return jax.make_mesh(sizes, sharding.AXES, axis_types=(AxisType.Auto,) * len(sizes))

    def describe(self) -> str:
        return f"jit on a mesh of data {self.data} x fsdp {self.fsdp} x tensor {self.tensor}"

    @property
    def shards(self) -> int:
        return self.data * self.fsdp

    def shardings(self, tree: PyTree) -> PyTree:
        """Returns where each array of a state, or of parameters, lies."""
        return sharding.shardings(tree, self.model, self.mesh)

    def create(self, make: Callable[[], PyTree]) -> PyTree:
        """Returns the state that `make` makes, each array in its place from the start: none is whole anywhere."""
        return jax.jit(make, out_shardings=self.shardings(jax.eval_shape(make)))()

    def place(self, state: PyTree) -> PyTree:
        return jax.tree.map(_put, state, self.shardings(state))

    def train_step(self, step: Callable) -> Callable:
        compiled = None

        def call(state, batch):
            nonlocal compiled
            compiled = compiled or self._compiled(step, state)
            return compiled(state, self._share(batch))

        return call

    def evaluate(self, step: Callable) -> Callable:
        compiled = jax.jit(step, out_shardings=NamedSharding(self.mesh, P()))
        return lambda variables, batch: compiled(self.place(variables), self._share(batch))

    def per_example(self, function: Callable) -> Callable:
        compiled = jax.jit(function, out_shardings=NamedSharding(self.mesh, P()))
        rows = NamedSharding(self.mesh, sharding.BATCH)
        return lambda variables, batch: compiled(
            self.place(variables), jax.tree.map(lambda x: _put(np.asarray(x), rows), batch)
        )

    def lower(self, step: Callable, state: PyTree, batch: PyTree):
        count = jax.process_count()
        whole = jax.tree.map(lambda x: jax.ShapeDtypeStruct((len(x) * count, *x.shape[1:]), x.dtype), batch)
        return self._compiled(step, state).lower(state, whole)

    def state_bytes(self, state: PyTree) -> int:
        places = zip(*map(jax.tree.leaves, (state, self.shardings(state))), strict=True)
        return sum(math.prod(place.shard_shape(x.shape)) * x.dtype.itemsize for x, place in places)

    def _compiled(self, step, state):
        places, rows = self.shardings(state), NamedSharding(self.mesh, sharding.BATCH)
        outputs = (places, NamedSharding(self.mesh, P()))
        gathering = partial(step, gather=self._gather)
        return jax.jit(gathering, in_shardings=(places, rows), out_shardings=outputs, donate_argnums=0)

    def _gather(self, params):
        # Else the compiler may cut activations as it finds the kernels cut, and copy them whole to change that.
        places = sharding.shardings(params, self.model, self.mesh, gathered=True)
        return jax.lax.with_sharding_constraint(params, places)

    def _share(self, batch):
        """Returns the whole batch, of which this process has its share of the rows."""
        rows = NamedSharding(self.mesh, sharding.BATCH)
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(rows, np.asarray(x)), batch)


def _put(x, place):
    """Returns an array in its place; every process has all of it, if it is not there yet."""
    if isinstance(x, jax.Array) and x.sharding == place:
        return x
    if place.is_fully_addressable:
        # A copy, as the array may be shared, and the step gives its memory away.
        return jax.device_put(x, place, may_alias=False)
    whole = np.asarray(x)
    return jax.make_array_from_callback(whole.shape, place, lambda index: whole[index])


KINDS = ("pmap", "jit")


def make(config: Mapping[str, Any] | None = None, model: str = "") -> Pmap | Mesh:
    """Returns the parallelism of a config's group `parallel`, or pmap, for a model of this name.

    UserError for a kind or sizes that are not to be had.
    """
    if config is None:
        return Pmap()
    if config["kind"] not in KINDS:
        raise UserError(f"unknown parallel.kind '{config['kind']}', {nearest(config['kind'], KINDS)}")
    sizes = {axis: config[axis] for axis in sharding.AXES}
    if config["kind"] == "pmap":
        for axis in ("fsdp", "tensor"):
            if sizes[axis] != 1:
                raise UserError(f"parallel.{axis}={sizes[axis]} needs parallel.kind=jit: pmap is data parallel alone")
        if sizes["data"] not in (0, jax.device_count()):
            raise UserError(f"parallel.data={sizes['data']}: pmap takes all {jax.device_count()} devices, as 0 does")
        return Pmap()
    return Mesh(model, **_sizes(sizes))


def _sizes(sizes):
    """Returns the mesh's sizes, "data" being what is left where it is 0; UserError if they are not the devices."""
    for axis, size in sizes.items():
        if size < (0 if axis == "data" else 1):
            raise UserError(f"parallel.{axis}={size}: it should be 1 or more{', or 0' if axis == 'data' else ''}")
    devices, rest = jax.device_count(), sizes["fsdp"] * sizes["tensor"]
    data = sizes["data"] or devices // rest
    if data * rest != devices:
        names = " x ".join(f"{axis} {size}" for axis, size in (sizes | {"data": data}).items())
        raise UserError(f"config.parallel asks for a mesh of {names}, but there are {devices} devices")
    if jax.local_device_count() % sizes["tensor"]:
        raise UserError(
            f"parallel.tensor={sizes['tensor']} does not divide the {jax.local_device_count()} devices of a process"
        )
    return sizes | {"data": data}


def of(config: Mapping[str, Any]) -> Pmap | Mesh:
    """Returns the parallelism of an experiment's config."""
    return make(config["parallel"], config["model"]["name"])


def describe(devices: Pmap | Mesh | None = None) -> str:
    """Returns one line on the devices and how a batch is spread over them."""
    device = jax.devices()[0]
    kind, spread = f"{device.device_kind} ({device.platform})", (devices or Pmap()).describe()
    return f"{jax.device_count()} x {kind}, {spread}, {jax.process_count()} process(es)"


def rows_multiple(devices: Pmap | Mesh, accumulate: int = 1) -> int:
    """Returns what a batch's rows must be a multiple of, to divide over devices and accumulated parts.

    UserError if there are no parts.
    """
    if accumulate < 1:
        raise UserError(f"accumulate={accumulate}: it should be 1 or more")
    return devices.shards * accumulate


def check_batch_size(devices: Pmap | Mesh, name: str, batch_size: int, accumulate: int = 1) -> None:
    """Raises UserError if a batch does not divide evenly over the devices and accumulated parts."""
    multiple = rows_multiple(devices, accumulate)
    if batch_size % multiple:
        parts = f" in {accumulate} parts" if accumulate > 1 else ""
        over = f"{devices.shards} devices{parts}"
        raise UserError(f"{name}={batch_size} does not divide over {over}; use a multiple of {multiple}")
