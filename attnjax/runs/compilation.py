"""The training step, compiled before the first step for all shapes of batches, several of them at a time."""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax

from attnjax.inspection.flops import jaxpr_multiply_adds
from attnjax.nn.kernels import recorded
from attnjax.training.devices import Devices
from attnjax.training.step import TrainStep

PyTree = Any
Key = tuple[tuple[str, tuple[int, ...]], ...]


class CompiledStep:
    """A training step (state, batch) -> (state, metrics) on all devices, which is compiled once per shape of batch.

    attention: (kernel, reason) -> how many attention layers use it, for the first shape.
    """

    def __init__(self, devices: Devices, step: TrainStep, state: PyTree, batches: Sequence[Mapping[str, Any]]):
        """Compiles for a state and batches of arrays or shapes; a batch is this process's share."""
        self._devices, self._step = devices, step
        self._executables: dict[Key, Callable] = {}
        self._operations: dict[Key, int] = {}
        with recorded() as self.attention:
            first = devices.trace(step, state, batches[0])
        self._compile([first, *(devices.trace(step, state, batch) for batch in batches[1:])], batches)

    def __call__(self, state: PyTree, batch: Mapping[str, Any]) -> tuple[PyTree, dict]:
        if _key(batch) not in self._executables:
            self._compile([self._devices.trace(self._step, state, batch)], [batch])
        return self._executables[_key(batch)](state, self._devices.global_batch(batch))

    def operations(self, batch: Mapping[str, Any]) -> int:
        """Returns the floating-point operations of a step on each device, in matrix products and convolutions."""
        return self._operations[_key(batch)]

    def _compile(self, traced: Sequence[jax.stages.Traced], batches: Sequence[Mapping[str, Any]]) -> None:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            compiled = pool.map(lambda one: one.lower().compile(), traced)
            for one, batch, executable in zip(traced, batches, compiled, strict=True):
                self._executables[_key(batch)] = executable
                self._operations[_key(batch)] = 2 * jaxpr_multiply_adds(one.jaxpr.jaxpr) // self._devices.programs


def _key(batch: Mapping[str, Any]) -> Key:
    return tuple(sorted((name, x.shape) for name, x in batch.items()))
