"""The same numbers on one device, by pmap over eight, on a mesh, and in two processes, for every family of models.

These are the cheap cases; `make survive` runs the full table. Run as a program, this is one of the two processes.
"""

import dataclasses
import functools
import itertools
import json
import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from attnjax import models
from attnjax.errors import UserError
from attnjax.objectives.classification import ClassificationObjective
from attnjax.objectives.sequence import SequenceObjective
from attnjax.training import devices as devices_lib
from attnjax.training import sharding
from attnjax.training import state as state_lib
from attnjax.training.optimizer import OptimizerOptions, make_optimizer
from attnjax.training.step import TrainStep

ROWS = 32
VIT = models.fields("vit", patch_size=4, width=16, depth=2, num_heads=2, mlp_dim=32, dropout=0.1, drop_path=0.2)
TEXT = dict(width=16, num_heads=2, mlp_dim=32, max_length=12, dropout=0.2, norm="pre")
MODELS = {
    "mlp": models.fields("mlp", widths=(16, 8)),
    "resnet": models.fields("resnet", blocks=(1, 1), features=(8, 16)),
    "vit": VIT,
    "swin": models.fields("swin", patch_size=2, width=8, depths=(1, 4), num_heads=(2, 4), window=2, kernel_std=0.0),
    "rnn": models.fields("rnn", width=16, embedding=8, dropout=0.2),
    "transformer": models.fields("transformer", **TEXT, encoder_depth=2, decoder_depth=2),
    "captioner": models.fields(
        "captioner", encoder=VIT, text=models.fields("transformer", **TEXT, encoder_depth=1, decoder_depth=2)
    ),
}


def build(name, dtype="float32", **fields):
    """Returns a task, and the shapes that its model is initialised with."""
    model = models.fields(**MODELS[name])
    parts = [model["encoder"], model["text"]] if name == "captioner" else [model]
    for part in parts:
        part.update({field: value for field, value in fields.items() if field in part})
    image, words = jax.ShapeDtypeStruct((1, 8, 8, 3), np.float32), jax.ShapeDtypeStruct((1, 4), np.int32)
    if name == "captioner":
        built = models.build_captioner(model, dtype=dtype, source_vocabulary=20, target_vocabulary=20)
        return SequenceObjective(built, reads=("image",)), {"image": image, "target": words}
    if name in ("rnn", "transformer"):
        built = models.build(model, dtype=dtype, source_vocabulary=20, target_vocabulary=20)
        return SequenceObjective(built), {"source": words, "target": words}
    return ClassificationObjective(models.build(model, num_classes=5, dtype=dtype)), {"image": image}


def make_batch(seed):
    """Returns a batch for all tasks; its rows have other lengths, the last ones are empty."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, 9, ROWS) * (np.arange(ROWS) < 29)
    tokens = rng.integers(3, 20, (2, ROWS, 8)) * (np.arange(8) < lengths[:, None])
    return {
        "image": rng.normal(size=(ROWS, 8, 8, 3)).astype(np.float32),
        "label": rng.integers(5, size=ROWS).astype(np.int32),
        "mask": np.arange(ROWS) < 29,
        "source": tokens[0].astype(np.int32),
        "target": tokens[1].astype(np.int32),
    }


@dataclasses.dataclass(frozen=True)
class Case:
    """How steps are computed. What changes the numbers: `dtype`, microbatches (their dropout and batch statistics), and
    the dropout of scanned blocks."""

    accumulate: int = 1
    remat: str = "none"
    scan: bool = False
    dtype: str = "float32"


CASES = {
    "plain": Case(),
    "accumulate": Case(accumulate=2),
    "remat full": Case(remat="full"),
    "remat dots": Case(remat="dots"),
    "scan": Case(scan=True),
    "scan, remat full, accumulate": Case(scan=True, remat="full", accumulate=2),
    "bfloat16": Case(dtype="bfloat16"),
}


def has(name, case):
    """Whether a model has the fields that a case changes."""
    fields = models.fields("vit") if name == "captioner" else MODELS[name]
    return (case.remat == "none" or "remat" in fields) and (not case.scan or "scan" in fields)


def reference_case(case):
    return dataclasses.replace(case, remat="none")


def after_steps(name, devices, case, steps=(1, 10), share=slice(None)):
    """Returns the parameters, as flat dicts of arrays, after each of `steps` steps; devices None: plain jit on one."""
    fields = {"dtype": case.dtype, "remat": case.remat, "scan": case.scan}
    task, example = build(name, **fields)
    rate = 0.05
    optimizer = make_optimizer(OptimizerOptions(name="sgd"), lambda step: rate)
    step = TrainStep(task, optimizer, lambda step: rate, accumulate=case.accumulate)
    if devices is None:
        state, step = state_lib.create(task, optimizer, example, 0, ema=False), jax.jit(step)
    else:
        state = devices.create(lambda: state_lib.create(task, optimizer, example, 0, ema=False))
        step = devices.train_step(step)
    found = []
    for number in range(1, max(steps) + 1):
        state, _ = step(state, {key: x[share] for key, x in make_batch(number).items()})
        if number in steps:
            leaves, _ = jax.tree_util.tree_flatten_with_path((state.params, state.model_state))
            found.append({jax.tree_util.keystr(path): whole(leaf) for path, leaf in leaves})
    return found


def whole(x):
    """Returns all of an array, however it is sharded."""
    if not x.is_fully_addressable:
        x = jax.jit(
            lambda x: x, out_shardings=jax.sharding.NamedSharding(x.sharding.mesh, jax.sharding.PartitionSpec())
        )(x)
    return np.asarray(x)


LAYOUTS = {
    "pmap": lambda name: devices_lib.make(),
    "mesh 2x2x2": lambda name: devices_lib.make("jit", fsdp=2, tensor=2, rules=models.lookup(name).rules),
}


def assert_same(one, other):
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        for name, x in a.items():
            scale = max(np.abs(x).max(), 3e-2)  # what starts at zero has hardly moved
            assert np.abs(x - b[name]).max() <= 1e-5 * scale, (name, np.abs(x - b[name]).max(), scale)


@functools.cache
def on_one_device(name, case):
    """Returns the parameters after 1 step and after 10, on one device."""
    return after_steps(name, None, case)


# What `make test` takes of the table: (model, layout, case).
CHEAP = [(name, "mesh 2x2x2", "plain") for name in MODELS if name != "captioner"] + [
    (name, "pmap", "plain") for name in ("vit", "rnn")
]
CHEAP += [(name, layout, "accumulate") for name in ("transformer", "resnet") for layout in LAYOUTS]
CHEAP += [("captioner", "mesh 2x2x2", "scan, remat full, accumulate")]
CHEAP_IN_TWO = [("vit", layout, "accumulate") for layout in LAYOUTS]


def table(cheap):
    combinations = [key for key in itertools.product(MODELS, LAYOUTS, CASES) if has(key[0], CASES[key[2]])]
    marks = {key: () if key in cheap else pytest.mark.thorough for key in combinations}
    return pytest.mark.parametrize("key", [pytest.param(key, marks=marks[key], id=", ".join(key)) for key in marks])


def assert_of_one_device(key, found):
    """In bfloat16: as near to what one device finds, taking all parameters together, as that is to float32."""
    name, _, case = key
    case = CASES[case]
    one = on_one_device(name, reference_case(case))
    if case.dtype == "float32":
        return assert_same(one, found)
    for a, b, exact in zip(one, found, on_one_device(name, Case()), strict=True):
        assert 0 < distance(a, exact) < 5e-2
        assert distance(a, b) < 1.5 * distance(a, exact)


def distance(one, other):
    """Returns the norm of the difference of all parameters, relative to theirs."""
    square = sum(np.sum(np.square(x - other[key])) for key, x in one.items())
    return np.sqrt(square / sum(np.sum(np.square(x)) for x in one.values()))


@table(CHEAP)
def test_the_numbers_of_one_device(key):
    name, layout, case = key
    assert_of_one_device(key, after_steps(name, LAYOUTS[layout](name), CASES[case]))


@table(CHEAP_IN_TWO)
def test_the_numbers_of_one_device_in_two_processes(key, of_two_processes):
    assert_of_one_device(key, of_two_processes[key])


@pytest.mark.parametrize("name", MODELS)
def test_ten_steps_move_the_parameters(name):
    first, last = on_one_device(name, Case())
    assert np.mean([np.abs(first[key] - last[key]).max() > 1e-4 for key in first]) > 0.7


@pytest.mark.parametrize(
    ("name", "fields"),
    [*((name, {}) for name in MODELS), *(("vit", {"position": p}) for p in ("learned_2d", "relative"))],
)
def test_every_kernel_and_table_has_a_rule(name, fields):
    """And each is cut into as many shares as "fsdp" has, where its sizes allow."""
    task, example = build(name, **fields)
    params, _ = jax.eval_shape(task.init, jax.random.key(0), example)
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        text = jax.tree_util.keystr(path, simple=True, separator="/")
        if not text.endswith(("kernel", "embedding", "rows", "columns")) or leaf.shape[-1] == 1:
            continue
        axes = sharding.spec(text, leaf.shape, models.lookup(name).rules, dict.fromkeys(sharding.AXES, 1))
        assert any(axes), f"{text} {leaf.shape} has no rule"


def test_fsdp_leaves_each_device_its_share_of_the_state():
    """By the compiler's own account: the step's arguments and results, each a state and little else."""
    task, example = build("transformer")
    optimizer = make_optimizer(OptimizerOptions(), lambda step: 1e-3)
    state = jax.eval_shape(lambda: state_lib.create(task, optimizer, example, 0, ema=True))
    step = TrainStep(task, optimizer, lambda step: 1e-3, ema_decay=0.9)
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), make_batch(0))
    batch = {name: batch[name] for name in ("source", "target")}
    sizes = {}
    for fsdp in (1, 2, 8):
        devices = devices_lib.make("jit", fsdp=fsdp, rules=models.lookup("transformer").rules)
        plan = devices.trace(step, state, batch).lower().compile().memory_analysis()
        sizes[fsdp] = devices.state_bytes(state)
        batch_bytes = 4 * (8 + 8) * ROWS // 8
        assert 0 <= plan.argument_size_in_bytes - sizes[fsdp] - batch_bytes < 200
    small = sum(x.size for x in jax.tree.leaves(state.params) if x.ndim < 2 or x.size < 200)
    for fsdp, size in sizes.items():
        assert size <= sizes[1] / fsdp + 4 * 4 * small  # four trees: parameters, average, two moments


BAD = {
    "kind": ({"kind": "pmpa"}, "unknown parallel.kind 'pmpa', did you mean 'pmap'"),
    "pmap": ({"fsdp": 2}, "parallel.fsdp=2 needs parallel.kind=jit"),
    "devices": ({"kind": "jit", "fsdp": 3}, "a mesh of data 2 x fsdp 3 x tensor 1, but there are 8 devices"),
    "size": ({"kind": "jit", "tensor": 0}, "parallel.tensor=0: it should be 1 or more"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_refused(case):
    changes, message = BAD[case]
    with pytest.raises(UserError, match=message):
        devices_lib.make(**changes)


# Two processes of four devices each


@pytest.fixture(scope="module")
def of_two_processes(request, tmp_path_factory):
    """What two processes find for all keys that are asked for: key -> the parameters after 1 step and after 10."""
    test = test_the_numbers_of_one_device_in_two_processes.__name__
    keys = [item.callspec.params["key"] for item in request.session.items if item.originalname == test]
    out = tmp_path_factory.mktemp("two") / "found.pickle"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    env = {**os.environ, "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=4")}
    command = [sys.executable, __file__, address, str(out), json.dumps(keys)]
    started = [
        subprocess.Popen([*command, str(i)], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for i in range(2)
    ]
    said = [process.communicate(timeout=3600)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], "\n".join(said)
    return pickle.loads(out.read_bytes())


def main(address, out, keys, process):
    process = int(process)
    jax.distributed.initialize(address, 2, process)
    assert jax.device_count() == 8 and jax.local_device_count() == 4
    share = slice(process * ROWS // 2, (process + 1) * ROWS // 2)
    found = {}
    for name, layout, case in json.loads(keys):
        found[name, layout, case] = after_steps(name, LAYOUTS[layout](name), CASES[case], share=share)
    if process == 0:
        Path(out).write_bytes(pickle.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
