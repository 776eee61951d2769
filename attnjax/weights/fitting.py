"""Fits weights to a model with another number of classes, image size or window: pure functions of arrays."""

from collections.abc import Callable, Mapping
from typing import Any

from attnjax.errors import UserError
from attnjax.nn.positions import resize_grid, resize_positions
from attnjax.weights.files import Arrays
from attnjax.weights.naming import check_fit
from attnjax.weights.published import Weights, is_head

Grid = tuple[int, int]
Grids = Callable[[Grid], Mapping[str, Grid]]
BIAS_RESIZE_RULE = "bicubic"  # Microsoft's, for relative position biases


def fit(
    weights: Weights,
    fresh: Mapping[str, Any],
    grids: Grids,
    image_size: Grid | None,
    classes: tuple[str, ...] | None = None,
) -> tuple[dict[str, Any], list[str]]:
    """Returns flat variables with the names and shapes of `fresh`, made of `weights`, and a report of the changes.

    Tables of absolute and relative positions are resized. The head stays fresh if the number of classes differs, or
    their names in `classes`, the model's, differ from those of the weights; without names on either side it is kept.
    UserError listing every other mismatch. `fresh` are the model's own flat variables, or only their shapes if the head
    does not stay fresh; `grids` returns {path of a table of absolute positions (1, p + h * w, D): its grid (h, w)} for
    an image size (H, W); `image_size` is the model's.
    """
    variables = dict(weights.variables)
    report = [
        *_fit_positions(variables, weights, fresh, grids, image_size),
        *_fit_rows_and_columns(variables, weights, fresh),
        *dict.fromkeys(_fit_biases(variables, fresh)),  # one line for all blocks
    ]
    num_classes = next((len(x) for path, x in fresh.items() if is_head(path) and path.endswith("/bias")), 0)
    renamed = bool(classes and weights.classes and tuple(classes) != tuple(weights.classes))
    if weights.num_classes != num_classes or (num_classes and renamed):
        variables = {path: array for path, array in variables.items() if not is_head(path)}
        variables |= {path: array for path, array in fresh.items() if is_head(path)}
        report.append(_head_replaced(weights, num_classes, classes))
    elif num_classes and classes and not weights.classes:
        report.append(f"head kept: its {num_classes} classes have no names in '{weights.source}'")
    found, wanted = ({path: array.shape for path, array in tree.items()} for tree in (variables, fresh))
    check_fit(found, wanted, weights.source)
    return variables, report


def _head_replaced(weights, num_classes, classes):
    if not num_classes:
        return f"head of {weights.num_classes} classes left out"
    if weights.num_classes != num_classes:
        return f"head replaced: {weights.num_classes or 'no'} -> {num_classes} classes"
    old, new = next((old, new) for old, new in zip(weights.classes, classes, strict=True) if old != new)
    return f"head replaced: {num_classes} classes of other names or order, as '{old}' -> '{new}'"


def _fit_positions(variables: Arrays, weights, fresh, grids, image_size):
    """Resizes tables of absolute positions in place; yields the report's lines."""
    for path, new in grids(image_size).items():
        if path not in fresh or path not in variables:
            continue
        prefix = fresh[path].shape[1] - new[0] * new[1]  # class tokens
        old = _old_grid(variables[path].shape[1] - prefix, weights, grids, path, new)
        if old != new:
            variables[path] = resize_positions(variables[path], old, new, weights.resize_rule)
            yield f"positions resized {old[0]}x{old[1]} -> {new[0]}x{new[1]} ({weights.resize_rule})"


def _old_grid(tokens, weights, grids, path, new):
    """Returns the grid of a table with `tokens` patches: its image size's, else the model's own, else a square."""
    side = round(tokens**0.5)
    square = new if new[0] * new[1] == tokens else (side, side)
    grid = grids(weights.image_size)[path] if weights.image_size else square
    if grid[0] * grid[1] != tokens:
        raise UserError(
            f"'{weights.source}' has positions for {tokens} patches, which do not form a {grid[0]}x{grid[1]} grid; "
            "weights without an image size in a config.json beside them must have been trained on square images, or on "
            "images of this model's size"
        )
    return grid


def _fit_rows_and_columns(variables: Arrays, weights, fresh):
    """Resizes factorized tables, rows (h, D/2) and columns (w, D/2), in place; yields the report's lines."""
    for path in fresh:
        if path not in variables or not path.endswith(("positions/rows", "positions/columns")):
            continue
        axis, old, new = path.rsplit("/", 1)[1], len(variables[path]), len(fresh[path])
        if old != new:
            variables[path] = resize_grid(variables[path][:, None], (new, 1), weights.resize_rule)[:, 0]
            yield f"positions of {axis} resized {old} -> {new} ({weights.resize_rule})"


def _fit_biases(variables: Arrays, fresh):
    """Resizes tables of relative positions in place; yields the report's lines."""
    for path, table in variables.items():
        if not path.endswith("relative_positions/embedding") or path not in fresh:
            continue
        old, new = table.shape[:2], fresh[path].shape[:2]
        if old != new:
            variables[path] = resize_grid(table, new, BIAS_RESIZE_RULE)
            yield f"relative positions resized {old[0]}x{old[1]} -> {new[0]}x{new[1]} ({BIAS_RESIZE_RULE})"
