"""Starting a run from other weights: a run folder's or a published file's."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from attnjax.config import resolve
from attnjax.errors import UserError
from attnjax.models.vit import patch_grid
from attnjax.nn.positions import resize_positions
from attnjax.training.run import Run, abstract_state, build_task, open_run
from attnjax.training.state import TrainState
from attnjax.weights import published
from attnjax.weights.naming import check_fit
from attnjax.weights.published import HEAD_BIAS, POSITIONS, Weights

# Fields of a model that change neither its weights nor what it computes with them in evaluation.
_FREE_FIELDS = ("dropout", "attention_dropout", "drop_path", "position_std", "attention_kernel", "dtype")
RUN_RESIZE_RULE = "bicubic_antialias"


def initialise(state: TrainState, config: ConfigDict) -> tuple[TrainState, list[str]]:
    """Returns `state`, fresh at step 0, with the weights of `config.init_from`, and lines that say what was changed.

    The source is a run folder (its best checkpoint, averaged weights where there are) or a weights file. The head
    stays fresh if the number of classes differs; a position table of another grid is resized. UserError, listing what
    differs, if anything else does not match. The average, if on, restarts from the loaded weights.
    """
    is_run = (Path(config.init_from) / "classes.json").is_file()
    read = read_run if is_run else published.read
    return load(state, read(config.init_from, config), config)


def read_run(workdir: str | Path, config: ConfigDict) -> Weights:
    """Returns the weights of a run folder; UserError if its model is not the config's."""
    run = open_run(workdir)
    old, new = resolve(run.config).model, resolve(config).model
    changed = [
        f"model.{field}: {old.get(field)!r} -> {new.get(field)!r}"
        for field in sorted({*old, *new} - set(_FREE_FIELDS))
        if old.get(field) != new.get(field)
    ]
    if changed:
        raise UserError(f"'{workdir}' is a run of another model ({'; '.join(changed)})")
    return _weights_of(run, str(workdir))


def _weights_of(run: Run, source: str) -> Weights:
    variables = flatten_dict({"params": run.params, **run.model_state}, sep="/")
    return Weights(
        source=source,
        variables={path: np.asarray(array) for path, array in variables.items()},
        num_classes=len(run.classes),
        classes=run.classes,
        image_size=tuple(run.config.data.image_size),
        resize_rule=RUN_RESIZE_RULE,
    )


def at_image_size(run: Run, image_size: tuple[int, int]) -> Run:
    """Returns the run for images of another size (height, width), positions resized; UserError if it cannot take them.

    A fully connected layer over all pixels, as in the MLP and LeNet-5, ties a model to its image size.
    """
    config = resolve(run.config)
    config.data.image_size = image_size
    task = build_task(config, len(run.classes))
    state, _ = load(abstract_state(config, task), _weights_of(run, f"the run at {image_size}"), config)
    return dataclasses.replace(run, config=config, task=task, params=state.params)


def load(state: TrainState, weights: Weights, config: ConfigDict) -> tuple[TrainState, list[str]]:
    """Returns `state` with `weights` in place of its own, and lines that say what was changed; see `initialise`."""
    fresh = flatten_dict({"params": state.params, **state.model_state}, sep="/")
    loaded, report = dict(weights.variables), []
    if POSITIONS in fresh and POSITIONS in loaded:
        loaded[POSITIONS], line = _fit_positions(loaded[POSITIONS], weights, config)
        report += line
    num_classes = fresh[HEAD_BIAS].shape[0]
    if weights.num_classes != num_classes:
        loaded |= {path: array for path, array in fresh.items() if path.startswith("params/head/")}
        report.append(f"head replaced: {weights.num_classes or 'no'} -> {num_classes} classes")
    shapes = ({path: array.shape for path, array in tree.items()} for tree in (loaded, fresh))
    check_fit(*shapes, weights.source)
    arrays = {tuple(path.split("/")): jnp.asarray(array, jnp.float32) for path, array in loaded.items()}
    model_state = unflatten_dict(arrays)
    params = model_state.pop("params")
    ema = None if state.ema is None else jax.tree.map(jnp.copy, params)
    return state.replace(params=params, model_state=model_state, ema=ema), report


def _fit_positions(table, weights, config):
    """Returns the table for the config's image size, and the line of the report, if any, that says so."""
    model = config.model
    prefix = 1 if model.pool == "token" else 0
    old = _old_grid(table.shape[1] - prefix, weights, model.patch_size)
    new = patch_grid(tuple(config.data.image_size), model.patch_size)
    if old == new:
        return table, []
    resized = resize_positions(table, old, new, weights.resize_rule)
    return resized, [f"positions resized {old[0]}x{old[1]} -> {new[0]}x{new[1]} ({weights.resize_rule})"]


def _old_grid(tokens, weights, patch_size):
    """Returns the grid of a table with `tokens` patches: by the image size where that is known, else square."""
    if weights.image_size:
        grid = tuple(length // patch_size for length in weights.image_size)
    else:
        grid = (round(tokens**0.5),) * 2
    if grid[0] * grid[1] != tokens:
        raise UserError(
            f"'{weights.source}' has positions for {tokens} patches, which is no {grid[0]}x{grid[1]} grid; "
            "weights without an image size in a config.json beside them must have been trained on square images"
        )
    return grid
