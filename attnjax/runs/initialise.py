"""Starting a run from other weights: a run folder's or a published file's."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from attnjax import models
from attnjax.config import differences, resolve
from attnjax.errors import UserError
from attnjax.nn.positions import resize_grid, resize_positions
from attnjax.runs.folder import Run, abstract_state, open_run
from attnjax.training.state import TrainState
from attnjax.weights import published
from attnjax.weights.naming import check_fit
from attnjax.weights.published import Weights, is_head

# Fields of a model that change neither its weights nor what it computes with them in evaluation.
_FREE_FIELDS = (
    "dropout",
    "attention_dropout",
    "drop_path",
    "position_std",
    "kernel_std",
    "attention_kernel",
    "shift_by",
    "dtype",
    "remat",
    "scan",
)
_RESIZED_FIELDS = ("window",)
RUN_RESIZE_RULE = "bicubic_antialias"
BIAS_RESIZE_RULE = "bicubic"  # Microsoft's


def initialise(state: TrainState, config: ConfigDict) -> tuple[TrainState, list[str]]:
    """Returns `state`, fresh at step 0, with the weights that the config starts from, and lines that say what was done.

    They are those of `config.init_from`, for all of the model, and of a captioner's `config.encoder_from`, for its
    image encoder. A source is a run folder (its best checkpoint, averaged weights where there are) or a weights file.
    The head stays fresh if the number of classes differs; tables of positions, of another grid or for another window,
    are resized. UserError, listing what differs, if anything else does not match. The average, if on, restarts from the
    loaded weights.
    """
    report = []
    if config.init_from:
        state, report = load(state, _read(config.init_from, config), config)
    if source := config.get("encoder_from"):
        if config.model.name != "captioner":
            raise UserError(f"encoder_from={source}: a {config.model.name} has no image encoder, only a captioner has")
        alone = ConfigDict({"model": config.model.encoder, "data": config.data})
        encoder, changes = load(_part(state, "encoder"), _read(source, alone), alone)
        state = state.replace(
            params=state.params | {"encoder": encoder.params},
            model_state={
                kind: parts | {"encoder": encoder.model_state[kind]} for kind, parts in state.model_state.items()
            },
        )
        if state.ema is not None:
            state = state.replace(ema=jax.tree.map(jnp.copy, state.params))
        report += [f"encoder initialised from {source}", *changes]
    return state, report


def _read(source, config):
    return read_run(source, config) if (Path(source) / "checkpoints").is_dir() else published.read(source, config)


def _part(state, name):
    """Returns the state of a part of the model alone."""
    model_state = {kind: parts[name] for kind, parts in state.model_state.items()}
    return state.replace(params=state.params[name], model_state=model_state, ema=None)


def read_run(workdir: str | Path, config: ConfigDict) -> Weights:
    """Returns the weights of a run folder; UserError if its model is not the config's."""
    run = open_run(workdir)
    old, new = (ConfigDict({"model": resolve(c).model}) for c in (run.config, config))
    free = [f"*.{field}" for field in (*_FREE_FIELDS, *_RESIZED_FIELDS)]
    if changed := differences(old, new, free):
        raise UserError(f"'{workdir}' is a run of another model ({'; '.join(changed)})")
    return _weights_of(run, str(workdir))


def _weights_of(run: Run, source: str) -> Weights:
    variables = flatten_dict({"params": run.params, **run.model_state}, sep="/")
    of_images = run.config.task == "classification"
    classes = run.workload.classes if of_images else ()
    return Weights(
        source=source,
        variables={path: np.asarray(array) for path, array in variables.items()},
        num_classes=len(classes),
        classes=classes,
        image_size=tuple(run.config.data.image_size) if of_images else None,
        resize_rule=RUN_RESIZE_RULE,
    )


def at_image_size(run: Run, image_size: tuple[int, int]) -> Run:
    """Returns the run for images of another size (height, width), positions resized; UserError if it cannot take them.

    A fully connected layer over all pixels, as in the MLP and LeNet-5, ties a model to its image size.
    """
    config = resolve(run.config)
    config.data.image_size = image_size
    workload = dataclasses.replace(run.workload, config=config)
    state, _ = load(abstract_state(workload), _weights_of(run, f"the run at {image_size}"), config)
    return dataclasses.replace(run, workload=workload, params=state.params)


def load(state: TrainState, weights: Weights, config: ConfigDict) -> tuple[TrainState, list[str]]:
    """Returns `state` with `weights` in place of its own, and lines that say what was changed; see `initialise`."""
    fresh = flatten_dict({"params": state.params, **state.model_state}, sep="/")
    loaded, report = _fit_positions(weights, fresh, config)
    loaded, lines = _fit_biases(loaded, fresh)
    report += lines
    num_classes = next((len(x) for path, x in fresh.items() if is_head(path) and path.endswith("/bias")), 0)
    if weights.num_classes != num_classes:
        loaded = {path: array for path, array in loaded.items() if not is_head(path)}
        loaded |= {path: array for path, array in fresh.items() if is_head(path)}
        if num_classes:
            report.append(f"head replaced: {weights.num_classes or 'no'} -> {num_classes} classes")
        else:
            report.append(f"head of {weights.num_classes} classes left out")
    shapes = ({path: array.shape for path, array in tree.items()} for tree in (loaded, fresh))
    check_fit(*shapes, weights.source)
    arrays = {tuple(path.split("/")): jnp.asarray(array, jnp.float32) for path, array in loaded.items()}
    model_state = unflatten_dict(arrays)
    params = model_state.pop("params")
    ema = None if state.ema is None else jax.tree.map(jnp.copy, params)
    return state.replace(params=params, model_state=model_state, ema=ema), report


def _fit_positions(weights, fresh, config):
    """Returns the variables with tables of absolute positions for the config's image size, and the report's lines."""
    loaded, report, model = dict(weights.variables), [], config.model
    grids_of = models.lookup(model.name).grids
    grids = grids_of(tuple(config.data.image_size), model) if grids_of else {}
    for path in [path for path in grids if path in fresh and path in loaded]:
        new = grids[path]
        prefix = fresh[path].shape[1] - new[0] * new[1]  # class tokens
        old = _old_grid(loaded[path].shape[1] - prefix, weights, model, path)
        if old != new:
            loaded[path] = resize_positions(loaded[path], old, new, weights.resize_rule)
            report.append(f"positions resized {old[0]}x{old[1]} -> {new[0]}x{new[1]} ({weights.resize_rule})")
    for path in [path for path in fresh if path.endswith(("positions/rows", "positions/columns")) and path in loaded]:
        axis, old, new = path.rsplit("/", 1)[1], len(loaded[path]), len(fresh[path])
        if old != new:
            loaded[path] = resize_grid(loaded[path][:, None], (new, 1), weights.resize_rule)[:, 0]
            report.append(f"positions of {axis} resized {old} -> {new} ({weights.resize_rule})")
    return loaded, report


def _fit_biases(loaded, fresh):
    """Returns the variables with tables of relative positions as large as `fresh` has them, and the report's lines."""
    loaded, report = dict(loaded), {}
    for path, table in loaded.items():
        if not path.endswith("relative_positions/embedding") or path not in fresh:
            continue
        old, new = table.shape[:2], fresh[path].shape[:2]
        if old != new:
            loaded[path] = resize_grid(table, new, BIAS_RESIZE_RULE)
            report[f"relative positions resized {old[0]}x{old[1]} -> {new[0]}x{new[1]} ({BIAS_RESIZE_RULE})"] = None
    return loaded, list(report)  # a line for all blocks that it is true of


def _old_grid(tokens, weights, model, path):
    """Returns the grid of a table with `tokens` patches: by the image size where that is known, else square."""
    size, square = weights.image_size, (round(tokens**0.5),) * 2
    grids_of = models.lookup(model.name).grids
    grid = grids_of(size, model)[path] if size and grids_of else square
    if grid[0] * grid[1] != tokens:
        raise UserError(
            f"'{weights.source}' has positions for {tokens} patches, which is no {grid[0]}x{grid[1]} grid; "
            "weights without an image size in a config.json beside them must have been trained on square images"
        )
    return grid
