"""Eight virtual CPU devices for all tests, and nothing written to the user's home; set before JAX starts.

`make gpu` sets JAX_PLATFORMS, and compiles as users do.
"""

import functools
import importlib.metadata
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

_HOME = tempfile.mkdtemp(prefix="attnjax-tests-")
# Most of the time goes into compiling: without LLVM's optimization and, where XLA still has the choice, its newer way
# to compile fusions, it is a quarter. What is compiled is kept, small as it is, for the processes that the tests start
# and for the next model of the same shape.
QUICK_XLA = "--xla_backend_optimization_level=0"
if importlib.metadata.version("jax").startswith("0.10."):
    QUICK_XLA += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
if os.environ.setdefault("JAX_PLATFORMS", "cpu") == "cpu":
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count=8 {QUICK_XLA}"
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.join(_HOME, "xla")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["TFDS_DATA_DIR"] = os.path.join(_HOME, "tensorflow_datasets")

# A shell starts commands in the background with SIGINT ignored; the processes that the tests start would inherit that.
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parent.parent


@pytest.fixture
def entry(monkeypatch, capsys):
    """Runs an entry point of experiments/ in this process: entry(name, *arguments) -> (exit code, stdout, stderr)."""
    from attnjax import cli

    def call(name, *arguments):
        spec = importlib.util.spec_from_file_location(name, ROOT / "experiments" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            cli.run(module.main)
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def untrained():
    """Returns untrained(experiment, workdir): makes a run folder of an experiment at step 0, and returns it opened."""
    from attnjax.runs import folder

    def make(experiment, workdir):
        folder.save_weights(workdir, experiment, experiment.create_state())
        return folder.open_run(workdir)

    return make


@pytest.fixture
def translation_experiment(tmp_path):
    """Returns translation_experiment(joint, **model fields): Transformers like Marian's, of numbers in words."""
    from num2words import num2words

    from attnjax import config as config_lib
    from attnjax import models
    from attnjax.runs.experiment import Experiment

    def make(joint=True, **fields):
        for language in ("en", "de"):
            lines = [num2words(number, lang=language) for number in range(0, 1000, 3)]
            (tmp_path / f"train.{language}").write_text("\n".join(lines) + "\n")
        config = config_lib.translation()
        marian = dict(norm="post", positions="concatenated", epsilon=1e-5, tie="all" if joint else "decoder")
        small = dict(width=16, encoder_depth=1, decoder_depth=1, num_heads=2, mlp_dim=16, max_length=64)
        config.model = models.fields("transformer", **{**marian, **small, **fields})
        config.data.source, config.data.validation = f"text:{tmp_path}", ""
        config.data.vocabulary.size, config.data.vocabulary.joint = 60, joint
        config.data.batching.max_length = 64
        return Experiment.from_config(config, tmp_path / "nowhere")

    return make


@pytest.fixture(scope="session")
def process():
    """Starts an entry point as a user would, on one device: process(name, *arguments, stdin=None) -> Popen."""
    env = {**os.environ, "XLA_FLAGS": QUICK_XLA}

    def start(name, *arguments, stdin=None):
        command = [sys.executable, str(ROOT / "experiments" / f"{name}.py"), *map(str, arguments)]
        pipes = {"stdin": stdin, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, env=env, text=True, cwd=ROOT, **pipes)

    return start


@pytest.fixture(scope="module")
def quick():
    """One device, for which less is compiled."""
    import jax

    with pytest.MonkeyPatch.context() as patch:
        for count in ("device_count", "local_device_count"):
            patch.setattr(jax, count, lambda: 1)
        yield patch


@pytest.fixture(scope="session")
def rows():
    """Reads a run's numbers: rows(workdir, split="train") -> the split's rows of metrics.jsonl, without times."""
    left_out = ("_per_second", "seconds", "data_wait", "mfu", "peak_memory_gib", "crc32")

    def read(workdir, split="train"):
        found = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        kept = [row for row in found if row["split"] == split]
        return [{name: x for name, x in row.items() if not name.endswith(left_out)} for row in kept]

    return read


@pytest.fixture(scope="session")
def apply():
    """Returns apply(module, variables, *inputs, **options): module.apply, compiled once per module and shapes."""
    import jax

    @functools.partial(jax.jit, static_argnums=0, static_argnames=("length", "method", "mutable", "train"))
    def call(module, variables, *inputs, **options):
        return module.apply(variables, *inputs, **options)

    return call


@pytest.fixture
def make_config():
    """Returns make_config(image_size=..., **model fields): the config of a small ViT."""
    from attnjax import config as config_lib
    from attnjax import models

    def make(image_size=(16, 16), **fields):
        config = config_lib.classification()
        small = dict(patch_size=4, width=8, depth=2, num_heads=2, mlp_dim=12)
        config.model = models.fields("vit", **(small | fields))
        config.data.image_size = image_size
        return config

    return make


@pytest.fixture
def random_variables():
    """Returns random_variables(config, classes): flat variables without two equal numbers."""
    import numpy as np

    from attnjax import models
    from attnjax.weights.published import variable_shapes

    def make(config, classes):
        rng = np.random.default_rng(0)
        model = models.build(config.model, num_classes=classes)
        shapes = variable_shapes(model, (1, *config.data.image_size, config.data.channels))
        return {path: rng.normal(size=shape).astype(np.float32) for path, shape in shapes.items()}

    return make


@pytest.fixture
def named(random_variables):
    """Returns named(format name, config, classes): a ViT's arrays as the format names them, and their variables."""
    from attnjax import models
    from attnjax.weights.naming import to_published
    from attnjax.weights.vit import FORMATS

    def make(name, config, classes=3):
        (fmt,) = (fmt for fmt in FORMATS if fmt.name.startswith(name))
        variables = random_variables(config, classes)
        return to_published(variables, fmt, models.build(config.model, num_classes=classes)), variables

    return make
