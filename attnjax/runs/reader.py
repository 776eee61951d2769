"""Reading checkpoints: which there are, which is best, and the training state of one. Nothing is written or moved."""

import contextlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from attnjax.errors import UserError
from attnjax.runs import checksums
from attnjax.training.state import TrainState

AVERAGE = "average"
REPLACED = ".replaced-"  # and the step: a checkpoint that is being saved again

# Files of a checkpoint, as Orbax names them after the items that are saved.
DATA, METRICS, RECORD = "data/metadata", "metrics/metrics", "record/metadata"


class Replaced(UserError):
    """A checkpoint that a training deleted while it was read."""


def has_checkpoint(workdir: Path) -> bool:
    """Returns whether a run folder holds a checkpoint, intact or not; interrupted saves do not count."""
    folder = workdir / "checkpoints"
    return bool(step_folders(folder)) or any(folder.glob(f"{REPLACED}*"))


def step_folders(folder: Path) -> list[Path]:
    """Returns the checkpoint folders, the latest last."""
    paths = folder.glob("*") if folder.is_dir() else ()
    return sorted((path for path in paths if path.name.isdigit() and path.is_dir()), key=lambda path: int(path.name))


def latest_record(workdir: Path) -> dict[str, Any] | None:
    """Returns the record of the latest checkpoint that has one and in which it is intact; None without any."""
    for path in reversed(step_folders(workdir / "checkpoints")):
        with contextlib.suppress(ValueError):
            if data := checksums.read(path, RECORD):
                return json.loads(data)
    return None


def check_keep(keep: int) -> None:
    """Raises UserError if a run would not keep any checkpoint."""
    if keep < 1:
        raise UserError(f"keep_checkpoints={keep}: it should be 1 or more")


class CheckpointReader:
    """The checkpoints of a run folder, which a training may be changing meanwhile.

    The best has the lowest validation "loss", or the highest of any other `best_metric`. UserError for a damaged one,
    and `Replaced` for one that was deleted while it was read.
    """

    def __init__(self, workdir: Path, best_metric: str, *, keep: int = 1):
        check_keep(keep)
        self.folder = Path(workdir).resolve() / "checkpoints"
        self._best_metric = best_metric
        self._keep = keep

    def path(self, step: int) -> Path:
        return self.folder / str(step)

    def steps(self) -> list[int]:
        """Returns the steps of the checkpoints, ascending."""
        return [int(path.name) for path in step_folders(self.folder)]

    @property
    def latest(self) -> int | None:
        return max(self.steps(), default=None)

    @property
    def best(self) -> int | None:
        """The step with the best validation (the latest among equals); None if none was validated."""
        scores = [(score, step) for step in self.steps() if (score := self.score(self.metrics(step))) is not None]
        return max(scores)[1] if scores else None

    def score(self, metrics: dict[str, float] | None) -> float | None:
        """Returns the number by which validations are compared, the higher the better; None without a finite one."""
        value = (metrics or {}).get(self._best_metric, math.nan)
        if not math.isfinite(value):
            return None
        return -value if self._best_metric == "loss" else value

    def metrics(self, step: int) -> dict[str, float] | None:
        """Returns the validation metrics saved with a step; None if it was not validated."""
        return self._read_json(step, METRICS)

    def record(self, step: int) -> dict[str, Any]:
        """Returns the `record` that was saved with a step."""
        return self._read_json(step, RECORD) or {}

    def _read_json(self, step, name):
        with self._reading(step):
            data = checksums.read(self.path(step), name)
        return None if data is None else json.loads(data)

    def restore(self, step: int, like: TrainState, data_iterator=None) -> TrainState:
        """Returns the state of a step, with the shapes of `like` (arrays or shapes); restores an iterator in place.

        It has the shardings of `like`, or is on the first device if there are none; it does not matter on how many
        devices it was saved. UserError if it does not fit.
        """
        device = _everywhere() if jax.process_count() > 1 else jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=_on_mesh(x) or device), like)
        with self._reading(step):
            self._check(step)
            with ocp.StandardCheckpointer() as checkpointer:
                restored = self._fitting(step, lambda: checkpointer.restore(self.path(step) / "state", shapes))
            # A deletion midway might have left arrays out.
            self.path(step).stat()
        if data_iterator is not None:
            if (place := self._read_json(step, DATA)) is None:
                raise UserError(
                    f"checkpoint {step} in '{self.folder}' holds weights alone: start a new run from them by "
                    f"--config.init_from={self.folder.parent}"
                )
            data_iterator.set_state(place)
        # Arrays that are not committed to a device can be used with any others.
        return jax.tree.map(lambda x, old: x if _on_mesh(old) else jnp.array(np.asarray(x)), restored, like)

    def _fitting(self, step, restore):
        try:
            return restore()
        except (ValueError, KeyError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"checkpoint {step} in '{self.folder}' does not fit this config's model: {reason}"
            ) from error

    def _check(self, step: int) -> None:
        """Reads all of a checkpoint; ValueError if it is damaged."""
        if damage := checksums.damage(self.path(step)):
            raise ValueError(damage)

    @contextlib.contextmanager
    def _reading(self, step) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if not self.path(step).is_dir():
                raise Replaced(f"checkpoint {step} in '{self.folder}' was deleted while it was read") from error
            if isinstance(error, ValueError):
                raise UserError(f"checkpoint {step} in '{self.folder}' is damaged: {error}") from None
            raise

    def last(self) -> list[int]:
        """Returns the steps of the `keep` latest checkpoints, the latest last."""
        self.choose("latest")  # raises if there is none
        return self.steps()[-self._keep :]

    def choose(self, which: str) -> int:
        """Returns the step of "best" (the latest where nothing was validated), "latest" or a number."""
        if not self.folder.is_dir():
            raise UserError(f"'{self.folder.parent}' has no checkpoints yet")
        steps = self.steps()
        if not steps:
            raise UserError(f"'{self.folder}' holds no checkpoint")
        if which == "best" and (best := self.best) is not None:
            return best
        if which in ("best", "latest"):
            return steps[-1]
        if not which.isdigit() or int(which) not in steps:
            raise UserError(f"no checkpoint '{which}' in '{self.folder}'. Known: best, latest, {AVERAGE}, {steps}")
        return int(which)


def _everywhere():
    return jax.sharding.NamedSharding(jax.sharding.Mesh(jax.devices(), ("all",)), jax.sharding.PartitionSpec())


def _on_mesh(x):
    """Returns the sharding of an array on a mesh; None if it has none."""
    sharding = getattr(x, "sharding", None)
    return sharding if isinstance(sharding, jax.sharding.NamedSharding) else None
