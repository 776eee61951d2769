"""Training steps compiled for GPUs and TPUs that are not here."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import config as config_lib
from attnjax import models
from attnjax.errors import UserError
from attnjax.inspection.cost import communication
from attnjax.inspection.flops import step_multiply_adds
from attnjax.nn.attention import MultiHeadAttention
from attnjax.nn.kernels import compiling_for, recorded
from attnjax.runs import dry_run
from attnjax.runs.experiment import Experiment, make_devices
from attnjax.runs.targets import find_target

VIT = dict(patch_size=2, width=64, depth=2, num_heads=4, mlp_dim=128)
SWIN = dict(patch_size=1, width=32, depths=(2,), num_heads=(2,), window=4)
MODELS = {
    "vit": models.fields("vit", **VIT),
    "swin": models.fields("swin", **SWIN),
    "crossvit": models.fields("crossvit", "mini-32", stages=1),
    "resnet": models.fields("resnet", "cifar8"),
}


def experiment(name, target, **parallel):
    """Returns an experiment on 32x32 images, on the devices of a target; the training step needs no data."""
    config = config_lib.classification()
    config.model, config.batch_size = MODELS[name], 16
    config.parallel.update(parallel)
    return Experiment.classifier(config, "0123456789", devices=make_devices(config, target.devices))


def batch_shapes(rows=16):
    image = jax.ShapeDtypeStruct((rows, 32, 32, 3), np.float32)
    label, mask = (jax.ShapeDtypeStruct((rows,), dtype) for dtype in (np.int32, bool))
    return {"image": image, "label": label, "mask": mask}


@pytest.mark.accelerators
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("target", ["h100", "v5e:2x2"])
def test_a_training_step_compiles(name, target):
    target = find_target(target)
    with compiling_for(target.backend):
        built = experiment(name, target)
        traced = built.devices.trace(built.train_step, built.state_shapes(), batch_shapes())
        compiled = target.compile(traced)
    assert compiled.memory_analysis().temp_size_in_bytes > 0
    assert bool(communication(compiled)) == (len(target.devices) > 1)
    if target.backend == "gpu" and name in ("vit", "crossvit"):
        assert "__cudnn$fmha" in compiled.as_text()


@pytest.mark.accelerators
@pytest.mark.parametrize("kind", ["pmap", "jit"])
def test_the_kernel_for_windows_is_for_the_programs_of_each_device(kind):
    """XLA could not partition it: on a mesh it would compute all windows on every GPU."""
    target = find_target("h100:2")
    with compiling_for("gpu"):
        built = experiment("swin", target, kind=kind)
        state = built.state_shapes()
        with recorded() as attention:
            traced = built.devices.trace(built.train_step, state, batch_shapes())
        compiled = target.compile(traced)
    kernels = {kernel for kernel, _ in attention}
    assert kernels == ({"windows"} if kind == "pmap" else {"head_major"})
    assert ("xla.gpu.triton" in compiled.as_text()) == (kind == "pmap")


@pytest.mark.accelerators
@pytest.mark.parametrize("target", ["h100:4", "v5e:2x2"])
def test_a_sharded_step_compiles(target):
    target = find_target(target)
    with compiling_for(target.backend):
        built = experiment("vit", target, kind="jit", fsdp=2, tensor=2)
        traced = built.devices.trace(built.train_step, built.state_shapes(), batch_shapes())
        moved = communication(target.compile(traced))
    assert {"all-gather", "all-reduce"} <= moved.keys()


@pytest.mark.accelerators
def test_operations_of_a_fused_kernel_are_those_of_its_products():
    def operations():
        module, x = MultiHeadAttention(4, 32, dtype="bfloat16"), jnp.ones((2, 24, 32), "bfloat16")

        def loss(variables, x):
            return module.apply(variables, x).astype("float32").sum()

        return step_multiply_adds(jax.grad(loss, (0, 1)), jax.eval_shape(module.init, jax.random.key(0), x), x)

    explicit = operations()
    with compiling_for("gpu"), recorded() as attention:
        assert operations() == explicit
    assert [kernel for kernel, _ in attention] == ["cudnn"]


@pytest.mark.accelerators
def test_a_dry_run_says_what_a_target_needs(entry, monkeypatch):
    monkeypatch.setattr(dry_run, "measure", lambda experiment, target: measured(experiment, target))
    code, out, err = entry(
        "train", "--config", "configs/digits_lenet.py", "--workdir", "none", "--dry_run", "--target", "h100:8"
    )
    assert code == 0 and re.search(r"8 x NVIDIA H100 80GB HBM3 \(gpu\)", out), err
    assert "all-reduce 1.00 MiB (1,048,576 bytes)" in out and "cudnn: fastest on NVIDIA GPUs" in out


def measured(experiment, target):
    assert experiment.config.precision == "bfloat16" and len(target.devices) == 8
    sizes = dict.fromkeys(("parameters", "state bytes", "peak bytes", "operations", "seconds to compile"), 1)
    found = {"communication": {"all-reduce": 2**20}, "attention": {("cudnn", "fastest on NVIDIA GPUs"): 2}, "share": {}}
    return sizes | found


@pytest.mark.parametrize("text", ["", "h200x", "h100:0", "h100:2x2", "v5e", "v5e:", "tpu:2x2"])
def test_an_unknown_target_is_refused(text):
    with pytest.raises(
        UserError, match="it should be h100 or a100, with a number of GPUs as in h100:8, or a TPU slice"
    ):
        find_target(text)


def test_collectives_are_counted_by_what_a_device_receives():
    class Compiled:
        def as_text(self):
            return """
  %all-reduce.1 = f32[8,4]{1,0} all-reduce(%x), replica_groups={}
  %all-reduce.2 = (f32[2]{0}, bf16[4]{0}) all-reduce(%a, %b), replica_groups={}
  %all-gather-start = (bf16[4]{0}, bf16[16]{0}) all-gather-start(%y), dimensions={0}
  %all-gather-done = bf16[16]{0} all-gather-done(%all-gather-start)
  %reduce-scatter.3 = f32[] reduce-scatter(%z)
"""

    assert communication(Compiled()) == {"all-reduce": 8 * 4 * 4 + 2 * 4 + 4 * 2, "all-gather": 32, "reduce-scatter": 4}


def test_a_target_is_for_a_dry_run(entry, tmp_path):
    code, _, err = entry(
        "train", "--config", "configs/digits_lenet.py", "--workdir", tmp_path / "run", "--target", "h100"
    )
    assert code == 2 and "--target is for --dry_run" in err
