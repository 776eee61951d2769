"""Every config builds and takes a step: on random images, on the embedded translations, or on a few made captions."""

import contextlib
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from num2words import num2words
from PIL import Image

from attnjax import config as config_lib
from attnjax import decoding, models
from attnjax.data.builders import symbols
from attnjax.data.images import pipeline
from attnjax.data.images.sources import ImageSource
from attnjax.inspection import flops
from attnjax.nn.kernels import compiling_for, recorded
from attnjax.runs.experiment import Experiment
from attnjax.sweeps import trials
from attnjax.tasks.translation import TranslationTask
from attnjax.training.step import make_eval_step

FOLDER = Path(__file__).parent.parent.parent / "configs"
# Of a Transformer's blocks one shows what all do; the rest would only take time to compile.
SMALLER = {
    "vit": {"depth": 1},
    "swin": {"depths": (1, 1), "num_heads": (1, 2)},
    "crossvit": {"stages": 1, "depths": (1, 1)},
    "transformer": {"encoder_depth": 1, "decoder_depth": 1},
}
# The arguments of those whose models differ by them; of the others, the default.
ARGUMENTS = {
    "reverse.py": [f":model={name}" for name in ("rnn", "lstm", "lstm_attention", "transformer")],
    "paper/cifar10_transformers.py": [":model=swin", ":model=vit"],
}
NAMES = [str(path.relative_to(FOLDER)) for path in sorted(FOLDER.glob("**/[!_]*.py"))]
SPECS = [name + argument for name in NAMES for argument in ARGUMENTS.get(name, [""])]


def classification(config, workdir):
    """The batch has the first two rows of one of the config's own size and augmentation."""
    del workdir
    experiment = Experiment.classifier(config, "0123456789")
    task, channels, rng = experiment.task, config.data.channels, np.random.default_rng(0)
    images = [rng.integers(0, 256, (50, 60 + number, channels), np.uint8) for number in range(16)]

    def load(indices):
        return [images[index] for index in indices], indices.astype(np.int32) % 10, np.ones(len(indices), bool)

    source = ImageSource(task.classes, channels, len(images), load, str)
    options = {"batch_size": config.batch_size, "seed": config.seed}
    pipeline.train_iterator(source, task.image_format, task.augmentation, **options).close()
    indices = np.arange(config.batch_size) % len(images)
    transforms = (task.image_format, task.augmentation)
    return experiment, pipeline.training_batch(source, indices, slice(0, 2), rng, *transforms, workers=1)


def write_numbers(languages, count, folder):
    """Writes train.LANGUAGE files of the numbers in words."""
    assert set(languages) <= {"en", "de", "fr"}
    for language in languages:
        lines = [num2words(number, lang=language) for number in range(count)]
        (folder / f"train.{language}").write_text("\n".join(lines) + "\n")


def translation(config, workdir):
    data = config.data
    data.train, data.validation = "train[:300]", ""
    if data.source.startswith("tfds:symbols/"):
        data.data_dir = str(workdir / "tfds")  # beside no others, as there are few of them
    else:
        write_numbers(data.languages, 300, workdir)
        data.source, data.data_dir, data.vocabulary.size = f"text:{workdir}", "", 150
        data.train = "train"
    data.batching.max_tokens = 8 * data.batching.max_length
    experiment = Experiment.from_config(config, workdir)
    batches = experiment.task.batches()
    batch = next(batches)
    batches.close()
    return experiment, batch


def captioning(config, workdir):
    if config.model.name == "captioner":
        encoder, text = config.model.encoder, config.model.text
        encoder.update(SMALLER.get(encoder.name, {}) if encoder.name != "resnet" else {})
        text.update(encoder_depth=min(1, text.encoder_depth), decoder_depth=1)
    data, count = config.data, 40
    for number in range(count):
        Image.new("RGB", (80, 60 + number), (number, 100, 200)).save(workdir / f"{number}.png")
    if data.image_lines:
        assert data.images
        write_numbers(data.languages, count, workdir)
        (workdir / "lines.tsv").write_text("".join(f"train\t{number}\t{number}.png\n" for number in range(count)))
        data.source, data.images, data.image_lines = f"text:{workdir}", str(workdir), str(workdir / "lines.tsv")
    else:
        rows = [f"{number}.png\t{num2words(number + added)}\n" for number in range(count) for added in (0, 40)]
        (workdir / "train.tsv").write_text("".join(rows))
        data.source = f"captions:{workdir}"
    data.train, data.validation = "train", ""
    data.vocabulary.size, data.batching.max_tokens = 50, 8 * data.batching.max_length
    experiment = Experiment.from_config(config, workdir)
    batches = experiment.task.batches()
    batch = next(batches)
    batches.close()
    return experiment, batch


TASKS = {"classification": classification, "translation": translation, "captioning": captioning}


# Of these captioners only the shapes: to compile all of them would take a minute.
TRACED = [f"flickr8k_captioner.py:encoder={encoder},gated=True" for encoder in ("swin", "resnet")]
TRACED += [f"multi30k_guided.py:inputs={inputs}" for inputs in ("text", "concatenated")]


def prepare(config, workdir):
    """Returns the experiment of a config with a smaller model, and a batch."""
    config.steps = config.steps or 10**6  # the warm-up is longer than an epoch of so little data
    config.model.update(SMALLER.get(config.model.name, {}))
    if config.model.name == "resnet":
        config.model.blocks = (1,) * len(config.model.blocks)
    return TASKS[config.task](config, workdir)


@pytest.mark.parametrize("spec", SPECS)
def test_config_takes_a_step(spec, tmp_path, monkeypatch):
    monkeypatch.setattr(symbols, "SIZES", {"train": 300, "validation": 10, "test": 10})
    name = spec.partition(":")[0]
    config = config_lib.load(str(FOLDER / spec))
    assert config.data.source
    assert "--config configs/" + name in (FOLDER / name).read_text()
    experiment, batch = prepare(config, tmp_path)
    after, metrics = jax.jit(experiment.train_step)(experiment.create_state(), batch)
    assert after.step == 1 and np.isfinite(metrics["loss"][0])
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(after.params))


def programs(experiment, batch):
    """Returns what a run of the experiment compiles: name -> traced training step, evaluation and decoding."""
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)
    state, objective = experiment.state_shapes(), experiment.task.objective
    variables = (state.params, state.model_state)
    evaluation = jax.jit(make_eval_step(objective, experiment.task.prepare))
    traced = {
        "training step": jax.jit(experiment.train_step).trace(state, shapes),
        "evaluation": evaluation.trace(variables, shapes),
    }
    if hasattr(objective, "generate"):
        options = decoding.Options(max_length=4, beam_size=2)
        generate = jax.jit(lambda *inputs: objective.generate(*inputs, options))
        traced["decoding"] = generate.trace(*variables, jax.eval_shape(experiment.task.prepare, shapes))
    return traced


def device_of(backend, model):
    """A context with the GPU that Pallas asks about, for the models with kernels of Pallas."""
    if backend != "gpu" or "swin" not in str(model):
        return contextlib.nullcontext()
    device = jax.sharding.AbstractDevice("NVIDIA H100", None, "gpu")
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((1,), ("device",), abstract_device=device))


@pytest.mark.accelerators
@pytest.mark.parametrize(("backend", "platform"), [("gpu", "cuda"), ("tpu", "tpu")])
@pytest.mark.parametrize("spec", SPECS)
def test_config_lowers_for_an_accelerator(spec, backend, platform, tmp_path, monkeypatch):
    """On one device, in both precisions; no device is needed."""
    monkeypatch.setattr(symbols, "SIZES", {"train": 300, "validation": 10, "test": 10})
    for precision in ("bfloat16", "float32"):
        config, folder = config_lib.load(str(FOLDER / spec)), tmp_path / precision
        config.precision = precision
        folder.mkdir()
        with compiling_for(backend), recorded() as attention, device_of(backend, config.model.name):
            for name, traced in programs(*prepare(config, folder)).items():
                assert traced.lower(lowering_platforms=(platform,)).as_text(), name
        kernels = {kernel for kernel, _ in attention}
        small = any(reason.startswith("cuDNN needs a multiple of 8 features") for _, reason in attention)
        if backend == "gpu" and precision == "bfloat16" and config.model.name in ("vit", "crossvit", "transformer"):
            assert "cudnn" in kernels or small
        if precision == "float32":
            assert "cudnn" not in kernels


def test_config_imports_its_base_from_any_directory(tmp_path, monkeypatch):
    package = tmp_path / "mine"
    (package / "ablations").mkdir(parents=True)
    for folder in (package, package / "ablations"):
        (folder / "__init__.py").touch()
    (package / "base.py").write_text(
        "from attnjax import config, models\n"
        "def get_config():\n"
        "    c = config.classification()\n"
        "    c.model = models.fields('lenet')\n"
        "    return c\n"
    )
    variant = package / "ablations" / "variant.py"
    variant.write_text("from mine import base\ndef get_config():\n    return base.get_config()\n")
    monkeypatch.chdir("/")
    before = list(sys.path)
    assert config_lib.load(str(variant)).model.name == "lenet"
    assert sys.path == before


TRACED += [
    f"paper/wmt14_transformer.py:size={size},languages={pair}"
    for size in ("base", "big")
    for pair in ("en-de", "en-fr")
]
TRACED += [f"paper/imagenet_vit.py:size={size},data=imagenet21k" for size in ("B/16", "L/16")]
TRACED += ["paper/imagenet_vit_finetune.py:size=L/16", "paper/imagenet_swin_finetune.py:size=T,image_size=224"]
TRACED += [f"paper/imagenet_swin.py:size={size}" for size in "TSB"]
TRACED += [f"paper/imagenet_resnet.py:size={layers}" for layers in (18, 152)]
TRACED += [f"paper/cifar10_resnet.py:size=cifar{layers}" for layers in (32, 44, 56, 110)]


def assert_fits_together(experiment, batch):
    state = experiment.state_shapes()
    after, metrics = jax.eval_shape(experiment.train_step, state, batch)
    assert jax.tree.map(lambda x: x.shape, after) == jax.tree.map(lambda x: x.shape, state) and "loss" in metrics


@pytest.mark.parametrize("spec", TRACED)
def test_variant_of_a_config_fits_together(spec, tmp_path):
    assert_fits_together(*prepare(config_lib.load(str(FOLDER / spec)), tmp_path))


# A file, its training images and classes, and arguments, of each of which its docstring says the cost.
IMAGENET = (1_281_167 * 99 // 100, 1_000)
COSTS = [
    ("cifar10_resnet", 45_000, 10, [f"size=cifar{depth}" for depth in (20, 32, 44, 56, 110)]),
    ("cifar10_transformers", 49_000, 10, ["model=swin", "model=vit"]),
    ("imagenet_deit", *IMAGENET, ["size=Ti/16", "size=S/16", "size=B/16"]),
    ("imagenet_resnet", *IMAGENET, [f"size={depth}" for depth in (18, 34, 50, 101, 152)]),
    ("imagenet_swin", *IMAGENET, ["size=T", "size=S", "size=B"]),
    ("imagenet_swin_finetune", *IMAGENET, ["size=B-384", "size=L-384"]),
    ("imagenet_vit", *IMAGENET, ["size=B/16", "size=L/16"]),
    ("imagenet_vit", 14_197_122 - 51_200, 21_843, [f"size={size}/16,data=imagenet21k" for size in "BL"]),
    ("imagenet_vit_finetune", *IMAGENET, ["size=B/16", "size=B/32", "size=L/16"]),
]


@pytest.mark.parametrize(("name", "images", "classes", "arguments"), COSTS)
def test_costs_in_docstrings(name, images, classes, arguments):
    """Two operations a multiply-add, three passes: forward, and backward by the weights and by what they apply to."""
    path, costs = FOLDER / "paper" / f"{name}.py", []
    for argument in arguments:
        config = config_lib.load(f"{path}:{argument}")
        model = models.build(config.model, num_classes=classes)
        steps = config.steps or config.epochs * (images * config.data.augment.repeats // config.batch_size)
        per_image = 6 * flops.multiply_adds(model, (*config.data.image_size, 3))
        costs.append(f"{per_image * steps * config.batch_size:.1e}".replace("e+", "e"))
    assert ", ".join(costs) in path.read_text()


@pytest.mark.parametrize("path", sorted((FOLDER / "ablations").glob("[!_]*.py")), ids=lambda path: path.stem)
def test_every_row_of_an_ablation_fits_together(path, tmp_path):
    """All of them on the base's data, which no row changes."""
    assert "--config configs/ablations/" + path.name in path.read_text()
    sweep = trials.plan(str(path), tmp_path, given=[], evaluate="best", experiments=tmp_path)
    rows = [trial for trial in sweep.trials if trial.config.seed == 0]
    assert len(sweep.trials) == 3 * len(rows)
    assert not any(field.startswith("data.") for trial in rows for field in trial.overrides)
    experiment, batch = prepare(config_lib.load(str(path)), tmp_path)
    for trial in rows:
        assert_fits_together(on_same_data(experiment, trial.config), batch)


def on_same_data(experiment, config):
    """Returns the experiment of another config, with the classes or the vocabulary of the first."""
    if config.task == "classification":
        return Experiment.classifier(config, experiment.task.classes)
    task = TranslationTask.with_vocabulary(config, experiment.devices, experiment.task.vocabulary)
    return Experiment(config, experiment.devices, task)
