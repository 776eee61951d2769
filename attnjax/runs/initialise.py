"""Initializes a run from the weights of a run folder or a published file."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from attnjax import models
from attnjax.config import differences, override, resolve
from attnjax.errors import UserError
from attnjax.runs.experiment import Experiment, make_devices
from attnjax.runs.folder import Run, open_run
from attnjax.training.state import TrainState
from attnjax.weights import published
from attnjax.weights.fitting import fit
from attnjax.weights.naming import check_numbers
from attnjax.weights.published import Weights

# Model fields that change neither its weights nor what it computes with them in evaluation, and resizable ones.
_FREE_FIELDS = (
    *("dropout", "attention_dropout", "drop_path", "position_std", "kernel_std"),
    *("attention_kernel", "shift_by", "remat", "scan", "window"),
)
RUN_RESIZE_RULE = "bicubic_antialias"
IMAGE_FIELDS = ("mean", "std", "resize", "crop_fraction", "interpolation")  # of `data`: how images become inputs


def initialise(
    state: TrainState, config: ConfigDict, classes: tuple[str, ...] | None = None
) -> tuple[TrainState, list[str]]:
    """Returns a fresh `state` with the weights that the config starts from, and a report of what was changed in them.

    `config.init_from` gives the weights of the complete model, `config.encoder_from` those of a captioner's image
    encoder. Each is a run folder (its best checkpoint, EMA weights if it has them) or a weights file. See
    `weights.fitting.fit` for what may differ; `classes` are those of the new run. The report also says where the
    weights saw images of another mean, standard deviation or resizing. The EMA, if on, restarts from the weights.
    """
    report: list[str] = []
    if config.init_from:
        weights = _read(config.init_from, config)
        state, report = load(state, weights, config, classes)
        report += _other_images(weights, config)
    if source := config.get("encoder_from"):
        if config.model.name != "captioner":
            raise UserError(f"encoder_from={source}: a {config.model.name} has no image encoder, only a captioner has")
        alone = ConfigDict({"model": config.model.encoder, "data": config.data})
        weights = _read(source, alone)
        encoder, changes = load(_part(state, "encoder"), weights, alone)
        params = state.params | {"encoder": encoder.params}
        model_state = {kind: old | {"encoder": encoder.model_state[kind]} for kind, old in state.model_state.items()}
        ema = None if state.ema is None else jax.tree.map(jnp.copy, params)
        state = dataclasses.replace(state, params=params, model_state=model_state, ema=ema)
        report += [f"encoder initialised from {source}", *changes, *_other_images(weights, config)]
    return state, report


def load(
    state: TrainState, weights: Weights, config: ConfigDict, classes: tuple[str, ...] | None = None
) -> tuple[TrainState, list[str]]:
    """Returns `state` with `weights` fitted to the config's model and image size, and a report of what was changed.

    `classes` are the names of the new model's; without them a head for as many classes is kept.
    """
    fresh = flatten_dict({"params": state.params, **state.model_state}, sep="/")
    size = config.data.get("image_size")
    variables, report = fit(weights, fresh, lambda size: _grids(config.model, size), size, classes)
    model_state = unflatten_dict({path: jnp.asarray(x, jnp.float32) for path, x in variables.items()}, sep="/")
    params = model_state.pop("params")
    ema = None if state.ema is None else jax.tree.map(jnp.copy, params)
    return dataclasses.replace(state, params=params, model_state=model_state, ema=ema), report


def read_run(workdir: str | Path, config: ConfigDict) -> Weights:
    """Returns the weights of a run folder; UserError if its model is not the config's."""
    run = open_run(workdir)
    old, new = (ConfigDict({"model": resolve(c).model}) for c in (run.config, config))
    if changed := differences(old, new, [f"*.{field}" for field in _FREE_FIELDS]):
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise UserError(f"'{workdir}' is a run of another model ({'; '.join(changed[:3])}{more})")
    weights = _weights_of(run, str(workdir))
    check_numbers(weights.variables, weights.source)
    return weights


def at_image_size(run: Run, image_size: tuple[int, int]) -> Run:
    """Returns the run for images of another size (height, width), with its tables of positions resized.

    UserError if its model only takes images of one size: a fully connected layer over all pixels, as in the MLP and
    LeNet-5, does.
    """
    run.expect("classification")
    config = resolve(run.config)
    config.data.image_size = image_size
    experiment = Experiment.classifier(config, run.task.classes, devices=run.experiment.devices)
    state, _ = load(experiment.state_shapes(), _weights_of(run, f"the run at {image_size}"), config)
    return dataclasses.replace(run, experiment=experiment, params=state.params)


def with_overrides(run: Run, workdir: Path, overrides: Sequence[tuple[str, str]]) -> Run:
    """Returns a run with config fields overridden, (dotted path, text), to evaluate it; see `at_image_size`.

    UserError for fields that its weights were made for.
    """
    config = resolve(run.config)
    for path, _ in overrides:
        if f"{path}.".startswith(("task.", "model.", "data.channels.")):
            raise UserError(f"--config.{path}: the run's weights are those of its own model; train another one instead")
    override(config, overrides)
    if config.data.get("image_size") != run.config.data.get("image_size"):
        run = at_image_size(run, tuple(config.data.image_size))
    given = any(path.startswith("parallel.") for path, _ in overrides)
    devices = make_devices(config) if given else run.experiment.devices
    return dataclasses.replace(run, experiment=Experiment.from_run(config, workdir, devices=devices))


def _grids(model: ConfigDict, image_size: tuple[int, int]) -> Mapping[str, tuple[int, int]]:
    grids = models.lookup(model.name).grids
    return grids(image_size, model) if grids else {}


def _read(source: str, config: ConfigDict) -> Weights:
    if (Path(source) / "checkpoints").is_dir():
        return read_run(source, config)
    return published.read(source, config.model, (*config.data.image_size, config.data.channels))


def _other_images(weights: Weights, config: ConfigDict) -> list[str]:
    """Returns a line on how the images of the weights differed from the config's, but for their size, or nothing."""
    changed = [
        f"data.{name} {value}, here {config.data[name]}"
        for name, value in weights.image_format.items()
        if name != "image_size" and value != config.data[name]
    ]
    return [f"the weights saw other images: {'; '.join(changed)}"] if changed else []


def _part(state: TrainState, name: str) -> TrainState:
    """Returns the state of one part of the model, without an EMA."""
    model_state = {kind: parts[name] for kind, parts in state.model_state.items()}
    return dataclasses.replace(state, params=state.params[name], model_state=model_state, ema=None)


def _weights_of(run: Run, source: str) -> Weights:
    variables = flatten_dict({"params": run.params, **run.model_state}, sep="/")
    data, of_images = run.config.data, run.config.task == "classification"
    classes = run.task.classes if of_images else ()
    return Weights(
        source=source,
        variables={path: np.asarray(array) for path, array in variables.items()},
        num_classes=len(classes),
        classes=classes,
        image_size=tuple(data.image_size) if of_images else None,
        resize_rule=RUN_RESIZE_RULE,
        image_format={name: data[name] for name in IMAGE_FIELDS} if of_images else {},
    )
