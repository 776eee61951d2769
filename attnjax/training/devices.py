"""How states, batches and steps are spread over devices. Nothing else in the code knows.

Both kinds run the same pure step on a mesh with the axes "data", "fsdp" and "tensor":

"pmap": data parallelism. Each device holds a replica of the state and runs the step on its share of a batch's rows,
    by `jax.jit(jax.shard_map(...))` over the axis "data", which is what `jax.pmap` itself has been since JAX 0.8.
    Gradients and metrics are all-reduced between the two halves of the step.
"jit": one program on global arrays, sharded over all three axes. The compiler inserts the collectives.

A batch has the same rows either way, and each process brings its share of them.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from attnjax.errors import UserError, nearest
from attnjax.nn import kernels
from attnjax.nn.data_parallel import BATCH_AXIS
from attnjax.nn.partition import Rules, gathered_by_layer, gathering
from attnjax.training.sharding import AXES, ROWS, parameter_sharding, shardings
from attnjax.training.step import TrainStep

PyTree = Any
KINDS = ("pmap", "jit")


@dataclasses.dataclass(frozen=True)
class Devices:
    """All devices of all processes as a mesh of `data` x `fsdp` x `tensor`; made by `make`.

    rules: sharding rules of the model's parameters; None: the general rule of `sharding.spec`. over: other devices than
    this machine's, which can be compiled for but not run on.
    """

    kind: str
    data: int
    fsdp: int = 1
    tensor: int = 1
    rules: Rules | None = ()
    over: tuple[jax.Device, ...] = ()

    @functools.cached_property
    def mesh(self) -> jax.sharding.Mesh:
        sizes = (self.data, self.fsdp, self.tensor)
        return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(sizes), devices=self.over or None)

    @property
    def shards(self) -> int:
        """The number of parts that the rows of a batch are split into."""
        return self.data * self.fsdp

    def __str__(self) -> str:
        """Returns one line on the devices and how a batch is spread over them."""
        device = self.mesh.devices.flat[0]
        if self.kind == "jit":
            spread = f"jit on a mesh of data {self.data} x fsdp {self.fsdp} x tensor {self.tensor}"
        else:
            spread = "jit, one device" if self.data == 1 else f"pmap, data parallel over {self.data}"
        processes = jax.process_count()
        return f"{self.mesh.size} x {device.device_kind} ({device.platform}), {spread}, {processes} process(es)"

    # Where arrays are

    def shardings(self, tree: PyTree) -> PyTree:
        """Returns the sharding of each array or shape of a state, or of a part of one."""
        return shardings(tree, () if self.kind == "pmap" else self.rules, self.mesh)

    def create(self, make: Callable[[], PyTree]) -> PyTree:
        """Returns the state that `make` makes; with "jit" each array is made sharded, and is never whole anywhere."""
        if self.kind == "pmap":
            return self.place(make())
        return jax.jit(make, out_shardings=self.shardings(jax.eval_shape(make)))()

    def place(self, tree: PyTree) -> PyTree:
        """Returns a state of arrays, which every process has, on the devices."""
        return jax.tree.map(_put, tree, self.shardings(tree))

    def state_bytes(self, state: PyTree) -> int:
        """Returns the bytes that a state, of arrays or shapes, takes on each device."""
        places = zip(*map(jax.tree.leaves, (state, self.shardings(state))), strict=True)
        return sum(math.prod(place.shard_shape(x.shape)) * x.dtype.itemsize for x, place in places)

    # What runs on them

    def train_step(self, step: TrainStep) -> Callable[[PyTree, dict], tuple[PyTree, dict]]:
        """Returns `step` compiled, (state, batch) -> (state, metrics); it donates the state, whose memory is reused."""
        compiled = self._compiled(step)
        return lambda state, batch: compiled(state, self.global_batch(batch))

    def trace(self, step: TrainStep, state: PyTree, batch: PyTree) -> jax.stages.Traced:
        """Returns the training step traced for shapes: those of the state, and of this process's share of a batch."""

        def shape(x, sharding, count=1):
            return jax.ShapeDtypeStruct((len(x) * count, *x.shape[1:]) if x.shape else (), x.dtype, sharding=sharding)

        state = jax.tree.map(shape, state, self.shardings(state))
        batch = jax.tree.map(lambda x: shape(x, self._rows, jax.process_count()), batch)
        # Kernels of Pallas ask which GPU it is.
        target = jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh) if self.over else contextlib.nullcontext()
        with target:
            return self._compiled(step).trace(state, batch)

    def evaluate(self, step: Callable) -> Callable:
        """Returns `step(variables, batch)` compiled; its results are sums over the rows of a batch."""
        function = step
        if self._maps:
            function = self._mapped(lambda variables, batch: jax.lax.psum(step(variables, batch), BATCH_AXIS), P())
        compiled = jax.jit(self._program(function), out_shardings=NamedSharding(self.mesh, P()))
        return lambda variables, batch: compiled(self.place(variables), self.global_batch(batch))

    def per_example(self, function: Callable) -> Callable:
        """Returns `function(variables, batch)` compiled; the leading axis of its results is the batch.

        Every process brings the whole batch, and gets the whole result.
        """
        if self._maps:
            function = self._mapped(function, P(BATCH_AXIS))
        compiled = jax.jit(self._program(function), out_shardings=NamedSharding(self.mesh, P()))
        return lambda variables, batch: compiled(
            self.place(variables), jax.tree.map(lambda x: _put(np.asarray(x), self._rows), batch)
        )

    def global_batch(self, batch: PyTree) -> PyTree:
        """Returns the global batch on the devices, of whose rows this process has its share."""
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(self._rows, np.asarray(x)), batch)

    @property
    def programs(self) -> int:
        """The number of devices that share the operations of a traced step."""
        return 1 if self._maps else self.mesh.size

    @property
    def _maps(self):
        """Whether each device runs a program of its own; on one device there is nothing to map over."""
        return self.kind == "pmap" and self.data > 1

    @property
    def _rows(self):
        return NamedSharding(self.mesh, ROWS)

    def _mapped(self, function, out_specs):
        """Returns function(replicated, batch) as a program of each device, on its share of the rows."""
        in_specs = (P(), P(BATCH_AXIS))
        return jax.shard_map(function, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)

    def _program(self, function):
        """Returns `function`, whose kernels are chosen for what runs it: each device, or all of them together."""
        if self.kind == "pmap" or self.mesh.size == 1:
            return function

        @functools.wraps(function)
        def program(*inputs):
            with kernels.partitioned():
                return function(*inputs)

        return program

    def _compiled(self, step):
        def data_parallel(state, batch):
            sums, model_state = step.sums(state, batch)
            return step.update(state, jax.lax.psum(sums, BATCH_AXIS), model_state)

        def sharded(state, batch):
            with gathering(self._gather if self.fsdp > 1 else None):
                sums = step.sums(state.replace(params=self._all_gather(state.params)), step.prepare(batch))
            state, metrics = step.update(state, *sums)
            return jax.lax.with_sharding_constraint(state, self.shardings(state)), metrics

        if self.kind == "jit":
            return jax.jit(self._program(sharded), donate_argnums=0)
        if not self._maps:
            return jax.jit(step, donate_argnums=0)
        mapped = self._mapped(data_parallel, P())
        return jax.jit(lambda state, batch: mapped(state, step.prepare(batch)), donate_argnums=0)

    def _all_gather(self, params):
        """All-gathers the parameters over "fsdp" that no layer gathers for itself.

        Otherwise the compiler may shard activations like the kernels, and copy them whole to change that.
        """

        def gather(path, x):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            return x if self.fsdp > 1 and gathered_by_layer(name) else self._gather(name, x)

        return jax.tree_util.tree_map_with_path(gather, params)

    def _gather(self, path, x):
        """Returns a parameter as the loss computes with it; its gradient is sharded like the parameter."""
        whole, shard = (parameter_sharding(path, x.shape, self.rules, self.mesh, gathered=g) for g in (True, False))

        @jax.custom_vjp
        def gather(x):
            return jax.lax.with_sharding_constraint(x, whole)

        gather.defvjp(lambda x: (gather(x), None), lambda _, g: (jax.lax.with_sharding_constraint(g, shard),))
        return gather(x)


def _put(x, sharding):
    """Returns an array with this sharding; every process has all of it, unless it has the sharding already."""
    if isinstance(x, jax.Array) and x.sharding == sharding:
        return x
    if sharding.is_fully_addressable:
        # A copy, as the caller may still hold the array, and the training step donates its memory.
        return jax.device_put(x, sharding, may_alias=False)
    whole = np.asarray(x)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


def make(
    kind: str = "pmap",
    data: int = 0,
    fsdp: int = 1,
    tensor: int = 1,
    *,
    rules: Rules | None = (),
    over: tuple[jax.Device, ...] = (),
) -> Devices:
    """Returns all devices, or those of `over`, as a mesh.

    `data` is the number that the other axes leave where it is 0.

    UserError for an unknown kind, and for sizes that do not fit the devices.
    """
    if kind not in KINDS:
        raise UserError(f"unknown parallel.kind '{kind}', {nearest(kind, KINDS)}")
    devices, sizes = len(over) or jax.device_count(), {"data": data, "fsdp": fsdp, "tensor": tensor}
    if kind == "pmap":
        for axis in ("fsdp", "tensor"):
            if sizes[axis] != 1:
                raise UserError(f"parallel.{axis}={sizes[axis]} needs parallel.kind=jit: pmap is data parallel alone")
        if data not in (0, devices):
            raise UserError(f"parallel.data={data}: pmap takes all {devices} devices, as 0 does")
        return Devices(kind, devices, over=over)
    for axis, size in sizes.items():
        if size < (0 if axis == "data" else 1):
            raise UserError(f"parallel.{axis}={size}: it should be 1 or more{', or 0' if axis == 'data' else ''}")
    sizes["data"] = data or devices // (fsdp * tensor)
    if math.prod(sizes.values()) != devices:
        names = " x ".join(f"{axis} {size}" for axis, size in sizes.items())
        raise UserError(f"config.parallel asks for a mesh of {names}, but there are {devices} devices")
    if not over and jax.local_device_count() % tensor:
        raise UserError(f"parallel.tensor={tensor} does not divide the {jax.local_device_count()} devices of a process")
    return Devices(kind, **sizes, rules=rules, over=over)


def rows_multiple(devices: Devices, accumulate: int = 1) -> int:
    """Returns what a batch's rows must be a multiple of, to divide over devices and microbatches.

    UserError for fewer than one microbatch.
    """
    if accumulate < 1:
        raise UserError(f"accumulate={accumulate}: it should be 1 or more")
    return devices.shards * accumulate


def check_batch_size(devices: Devices, name: str, batch_size: int, accumulate: int = 1) -> None:
    """Raises UserError if a batch does not divide evenly over devices and microbatches."""
    multiple = rows_multiple(devices, accumulate)
    if batch_size % multiple:
        parts = f" in {accumulate} parts" if accumulate > 1 else ""
        over = f"{devices.shards} devices{parts}"
        raise UserError(f"{name}={batch_size} does not divide over {over}; use a multiple of {multiple}")
