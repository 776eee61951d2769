"""Hardware to compile a training step for that this machine does not have: NVIDIA GPUs and slices of TPU pods."""

import dataclasses
import os
import re
from typing import Any

import jax
from jax.experimental import topologies

from attnjax.errors import UserError

# What XLA must know of a GPU, as `nvidia-smi` and the data sheet have it.
_COMMON = (
    "threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 threads_per_core_limit: 2048 "
    "block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535 registers_per_core_limit: 65536 "
    "registers_per_block_limit: 65536"
)
_GPUS = {
    "h100": (
        "NVIDIA H100 80GB HBM3",
        "shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448 core_count: 132 fpus_per_core: 128 "
        "memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98 device_memory_size: 84942979072 "
        "cuda_compute_capability { major: 9 minor: 0 }",
    ),
    "a100": (
        "NVIDIA A100-SXM4-80GB",
        "shared_memory_per_core: 167936 shared_memory_per_block_optin: 166912 core_count: 108 fpus_per_core: 64 "
        "memory_bandwidth: 2039000000000 l2_cache_size: 41943040 clock_rate_ghz: 1.41 device_memory_size: 84987740160 "
        "cuda_compute_capability { major: 8 minor: 0 }",
    ),
}
_DESCRIPTION = (
    "gpu_device_info {{ {common} {own} }} platform_name: 'CUDA' dnn_version_info {{ major: 9 minor: 8 patch: 0 }} "
    "device_description_str: '{name}' runtime_version {{ major: 13 }}"
)
_FORM = "it should be h100 or a100, with a number of GPUs as in h100:8, or a TPU slice like v5e:2x4 or v4:2x2x1"


@dataclasses.dataclass(frozen=True)
class Target:
    """Devices to compile for. backend: "gpu" or "tpu"; platform: "cuda" or "tpu"."""

    backend: str
    platform: str
    devices: tuple[Any, ...]

    @property
    def compiler_options(self) -> dict[str, str | bool]:
        """What XLA needs to compile without the device: it cannot time Triton's matrix products."""
        return {"xla_gpu_enable_triton_gemm": False} if self.backend == "gpu" else {}

    def compile(self, traced: jax.stages.Traced) -> jax.stages.Compiled:
        """Returns a function that was traced for these devices, compiled."""
        return traced.lower(lowering_platforms=(self.platform,)).compile(self.compiler_options)


def find_target(text: str) -> Target:
    """Returns the target that a user names; UserError for an unknown one, or if its compiler is not installed.

    To be called before JAX uses a device.
    """
    name, _, size = text.partition(":")
    jax.config.update("jax_platforms", "cpu")  # no accelerator of this machine is needed, nor its driver
    try:
        if name in _GPUS and re.fullmatch(r"[1-9]\d*|", size):
            kind, own = _GPUS[name]
            description = _DESCRIPTION.format(common=_COMMON, own=own, name=kind)
            options = {"topology": f"1x1x{size or 1}", "target_config": description}
            found = topologies.get_topology_desc(topology_name=name, platform="cuda", **options)
            return Target("gpu", "cuda", tuple(found.devices))
        if re.fullmatch(r"v\d\w*:\d+(x\d+)+", text):
            os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no TPU to ask
            found = topologies.get_topology_desc(platform="tpu", topology_name=text)
            return Target("tpu", "tpu", tuple(found.devices))
    except (RuntimeError, ValueError, NotImplementedError) as error:
        extra = "cuda" if name in _GPUS else "tpu"
        reason = str(error).splitlines()[0]
        raise UserError(f"cannot compile for {text}: {reason}; it needs pip install 'attnjax[{extra}]'") from None
    raise UserError(f"--target {text}: {_FORM}")
