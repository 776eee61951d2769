"""Orbax checkpoints of the training state together with the data iterator, each with checksums."""

import contextlib
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import preservation_policy as policy

from attnjax.errors import UserError, WriteError
from attnjax.files import reason, writing
from attnjax.runs import checksums
from attnjax.training.state import TrainState

AVERAGE = "average"
DAMAGED = "damaged"

# In checkpoints/, where a step is moved before it is deleted: a stop in the middle leaves no partial checkpoint behind.
_OLD = ".old"

# What Orbax and TensorStore raise when a file cannot be written or read.
_FAILURES = (OSError, ValueError, RuntimeError)


def has_checkpoint(workdir: Path) -> bool:
    """Returns whether a run folder holds a checkpoint, intact or not; interrupted saves do not count."""
    return bool(_step_folders(workdir / "checkpoints"))


def _step_folders(folder: Path) -> list[Path]:
    """Returns the checkpoint folders, the latest last."""
    paths = folder.glob("*") if folder.is_dir() else ()
    return sorted((path for path in paths if path.name.isdigit() and path.is_dir()), key=lambda path: int(path.name))


def set_aside_damaged(workdir: Path) -> list[str]:
    """Reads all checkpoints, moves the damaged ones to `damaged/`, and returns a line on each.

    Raises UserError, and moves nothing, if there are checkpoints but none of them is intact.
    """
    folder = workdir / "checkpoints"
    steps = _step_folders(folder)
    found = {path: damage for path in steps if (damage := checksums.damage(path))}
    if steps and len(found) == len(steps):
        listed = "; ".join(f"{path.name}: {damage}" for path, damage in found.items())
        raise UserError(
            f"no checkpoint in '{folder}' is intact ({listed}). Nothing was changed: put a good copy there, or "
            "move the folder away to start again"
        )
    _synchronize("damage is known")
    lines = []
    for path, damage in found.items():
        target = _free_name(workdir / DAMAGED / path.name)
        if jax.process_index() == 0:
            with writing(workdir):
                target.parent.mkdir(exist_ok=True)
                path.rename(target)
        lines.append(f"checkpoint {path.name} is damaged: {damage}; it was moved to {target}")
    _synchronize("damage is set aside")
    return lines


def _free_name(path):
    names = [path, *(path.with_name(f"{path.name}-{number}") for number in range(2, 1000))]
    return next(name for name in names if not name.exists())


def _synchronize(name):
    """Waits until all processes get here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def check_keep(keep: int) -> None:
    """Raises UserError if a run would not keep any checkpoint."""
    if keep < 1:
        raise UserError(f"keep_checkpoints={keep}: it should be 1 or more")


class Checkpoints:
    """The checkpoints of one run folder: the `keep` latest, and the best by the validation metric `best_metric`.

    The best has the lowest "loss", or the highest of any other metric. Opened for training, damaged checkpoints are set
    aside, and `damage` has a line on each. Opened `read_only`, nothing is moved: checkpoints without checksums are
    ignored, and `restore` raises UserError for a damaged one.
    """

    def __init__(self, workdir: Path, best_metric: str, *, keep: int = 1, read_only: bool = False):
        check_keep(keep)
        self.folder = Path(workdir).resolve() / "checkpoints"
        if read_only and not self.folder.is_dir():
            raise UserError(f"'{workdir}' has no checkpoints yet")
        self._keep = keep
        self._read_only = read_only
        self._saving = None
        self.damage = [] if read_only else set_aside_damaged(self.folder.parent)

        def score(metrics):
            return -metrics[best_metric] if best_metric == "loss" else metrics[best_metric]

        self._score = score
        best = policy.BestN(get_metric_fn=score, n=1, keep_checkpoints_without_metrics=False)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policy.AnyPreservationPolicy([policy.LatestN(keep), best]),
            best_fn=score,
            cleanup_tmp_directories=not read_only,
            read_only=read_only,
            todelete_subdir=_OLD,
            async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
        )
        try:
            with writing(self.folder):
                self._manager = ocp.CheckpointManager(self.folder, options=options)
        except ValueError:  # Orbax reads the metrics of all steps
            for path in _step_folders(self.folder):
                self._check(path)
            raise
        if not read_only:
            self._inode = self.folder.stat().st_ino
            self._delete_old()

    def _steps(self):
        """Returns the steps of the checkpoints, ascending."""
        steps = self._manager.all_steps()
        return sorted(step for step in steps if not self._read_only or checksums.is_sealed(self._path(step)))

    def _path(self, step):
        return self.folder / str(step)

    @property
    def latest(self) -> int | None:
        return max(self._steps(), default=None)

    @property
    def best(self) -> int | None:
        """The step with the best validation (the latest among equals); None if none was validated."""
        scores = [(self._score(metrics), step) for step in self._steps() if (metrics := self.metrics(step))]
        return max(scores)[1] if scores else None

    def metrics(self, step: int) -> dict[str, float] | None:
        """Returns the validation metrics saved with a step; None if it was not validated."""
        return self._manager.metrics(step)

    def save(
        self,
        step: int,
        state: TrainState,
        data_iterator,
        metrics: dict[str, float] | None,
        sums: dict[str, list[float]] | None = None,
    ) -> None:
        """Saves in the background; `metrics` are the validation metrics at this step, if it was validated.

        The state of the data iterator counts global batches: it is saved once, and restored by any number of
        processes. `sums` are those of metrics since the last log line. WriteError if the checkpoint cannot be written,
        or the save before this one failed.
        """
        items = {"data": ocp.args.JsonSave(data_iterator.get_state()), "sums": ocp.args.JsonSave(sums or {})}
        self._save(step, state, metrics, **items)

    def save_weights(self, state: TrainState) -> None:
        """Saves a state without a data iterator, as of converted weights, at its step."""
        self._save(int(state.step), state, None)

    def _save(self, step, state, metrics, **items):
        self.wait()
        self._delete_old()
        if self._gone():  # Orbax would create it again, without the earlier checkpoints
            raise WriteError(f"cannot save step {step:,} in '{self.folder}': the folder is gone")
        self._saving = step
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), **items)
        with self._failing():
            saved = self._manager.save(step, args=items, metrics=metrics)
        if not saved:
            raise RuntimeError(f"Orbax does not save step {step} after step {self._manager.latest_step()}")

    def _seal(self):
        """Writes checksums into the folder that Orbax is about to rename: no checkpoint ever exists without them."""
        (folder,) = self.folder.glob(f"{self._saving}.orbax-checkpoint-tmp*")
        checksums.seal(folder)

    def _gone(self):
        """Returns whether the folder was removed or replaced: Orbax creates missing parents silently."""
        return not self.folder.is_dir() or self.folder.stat().st_ino != self._inode

    def _delete_old(self):
        if jax.process_index() == 0:
            shutil.rmtree(self.folder / _OLD, ignore_errors=True)

    @contextlib.contextmanager
    def _failing(self):
        try:
            yield
        except _FAILURES as error:
            step, self._saving = self._saving, None
            if step is None:
                return  # already reported: Orbax re-raises a failed save on every later wait
            why = "the folder is gone" if self._gone() else reason(error)
            raise WriteError(f"cannot save step {step:,} in '{self.folder}': {why}") from error

    def _check(self, path):
        if damage := checksums.damage(path):
            raise UserError(f"checkpoint {path.name} in '{self.folder}' is damaged: {damage}")

    def intact(self) -> list[int]:
        """Reads all checkpoints in the folder, and returns the steps of those that are intact."""
        return [int(path.name) for path in _step_folders(self.folder) if not checksums.damage(path)]

    def restore(self, step: int, like: TrainState, data_iterator=None) -> TrainState:
        """Returns the state of a step, with the shapes of `like` (arrays or shapes); restores an iterator in place.

        It has the shardings of `like`, or is on the first device if there are none; it does not matter on how many
        devices it was saved.
        """
        if self._read_only:
            self._check(self._path(step))
        device = _everywhere() if jax.process_count() > 1 else jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=_on_mesh(x) or device), like)
        items = {"state": ocp.args.StandardRestore(shapes)}
        if data_iterator is not None:
            items["data"] = ocp.args.JsonRestore()
        try:
            restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        except (ValueError, KeyError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"checkpoint {step} in '{self.folder}' does not fit this config's model: {reason}"
            ) from error
        if data_iterator is not None:
            data_iterator.set_state(restored["data"])
        # Arrays that are not committed to a device can be used with any others.
        return jax.tree.map(lambda x, old: x if _on_mesh(old) else jnp.array(np.asarray(x)), restored["state"], like)

    def sums(self, step: int) -> dict[str, list[float]]:
        """Returns the sums of metrics that were saved with a step."""
        return self._manager.restore(step, args=ocp.args.Composite(sums=ocp.args.JsonRestore()))["sums"]

    def last(self) -> list[int]:
        """Returns the steps of the `keep` latest checkpoints, the latest last."""
        self.choose("latest")  # raises if there is none
        return self._steps()[-self._keep :]

    def choose(self, which: str) -> int:
        """Returns the step of "best" (the latest where nothing was validated), "latest" or a number."""
        steps = self._steps()
        if not steps:
            folders = _step_folders(self.folder)
            torn = "".join(f"; {path.name} is incomplete: {checksums.damage(path)}" for path in folders)
            raise UserError(f"'{self.folder}' holds no checkpoint{torn}")
        if which == "best" and self.best is not None:
            return self.best
        if which in ("best", "latest"):
            return steps[-1]
        if not which.isdigit() or int(which) not in steps:
            raise UserError(f"no checkpoint '{which}' in '{self.folder}'. Known: best, latest, {AVERAGE}, {steps}")
        return int(which)

    def wait(self) -> None:
        """Waits for pending saves; WriteError if one failed."""
        with self._failing():
            self._manager.wait_until_finished()
        step, self._saving = self._saving, None
        if step is not None and not checksums.is_sealed(self._path(step)):
            raise WriteError(f"cannot save step {step:,} in '{self.folder}': the folder is gone")

    def close(self) -> None:
        try:
            if not self._read_only:
                self.wait()
                self._delete_old()
        finally:
            with contextlib.suppress(*_FAILURES):  # already reported by `wait`
                self._manager.close()


def _everywhere():
    return jax.sharding.NamedSharding(jax.sharding.Mesh(jax.devices(), ("all",)), jax.sharding.PartitionSpec())


def _on_mesh(x):
    """Returns the sharding of an array on a mesh; None if it has none."""
    sharding = getattr(x, "sharding", None)
    return sharding if isinstance(sharding, jax.sharding.NamedSharding) else None
