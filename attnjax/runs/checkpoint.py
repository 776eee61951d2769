"""Orbax checkpoints of the training state and the data iterator together, each with checksums."""

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

# Below checkpoints/, where a step waits to be deleted: a stop in the middle of that leaves no half of a step behind.
_OLD = ".old"

# What Orbax and what is below it raise where a file cannot be written or read.
_FAILURES = (OSError, ValueError, RuntimeError)


def has_checkpoint(workdir: Path) -> bool:
    """Returns whether a run folder holds a checkpoint, sound or not; saves cut off half-way do not count."""
    return bool(_step_folders(workdir / "checkpoints"))


def _step_folders(folder: Path) -> list[Path]:
    """Returns the folders of the steps, the latest last."""
    paths = folder.glob("*") if folder.is_dir() else ()
    return sorted((path for path in paths if path.name.isdigit() and path.is_dir()), key=lambda path: int(path.name))


def set_aside_damaged(workdir: Path) -> list[str]:
    """Reads all checkpoints, moves the damaged ones to `damaged/`, and returns a line on each.

    Raises UserError, and moves nothing, if there are checkpoints but none of them is sound.
    """
    folder = workdir / "checkpoints"
    steps = _step_folders(folder)
    found = {path: damage for path in steps if (damage := checksums.damage(path))}
    if steps and len(found) == len(steps):
        lines = "; ".join(f"{path.name}: {damage}" for path, damage in found.items())
        raise UserError(
            f"no checkpoint in '{folder}' is sound ({lines}). Nothing was changed: put a good copy there, or move the "
            "folder away to begin anew"
        )
    _all_processes("damage is known")
    lines = []
    for path, damage in found.items():
        target = _free_name(workdir / DAMAGED / path.name)
        if jax.process_index() == 0:
            with writing(workdir):
                target.parent.mkdir(exist_ok=True)
                path.rename(target)
        lines.append(f"checkpoint {path.name} is damaged: {damage}; it was moved to {target}")
    _all_processes("damage is set aside")
    return lines


def _free_name(path):
    names = [path, *(path.with_name(f"{path.name}-{number}") for number in range(2, 1000))]
    return next(name for name in names if not name.exists())


def _all_processes(name):
    """Waits until all processes are here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def check_keep(keep: int) -> None:
    """Raises UserError if a run would keep no checkpoint."""
    if keep < 1:
        raise UserError(f"keep_checkpoints={keep}: it should be 1 or more")


class Checkpoints:
    """The checkpoints of one run folder: the `keep` latest, and the best by the validation's `best_metric`.

    The best has the least of "loss", or the most of any other metric. Opened for training, damaged ones are set aside,
    and `damage` has a line on each. Opened `read_only`, nothing is moved: steps without checksums are not seen, and
    `restore` raises UserError for a damaged one.
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
        """Returns the steps to choose from, ascending."""
        steps = self._manager.all_steps()
        return sorted(step for step in steps if not self._read_only or checksums.is_sealed(self._path(step)))

    def _path(self, step):
        return self.folder / str(step)

    @property
    def latest(self) -> int | None:
        return max(self._steps(), default=None)

    @property
    def best(self) -> int | None:
        """The step of the best validation, of equals the latest; None if no checkpoint was ever validated."""
        scores = [(self._score(metrics), step) for step in self._steps() if (metrics := self.metrics(step))]
        return max(scores)[1] if scores else None

    def metrics(self, step: int) -> dict[str, float] | None:
        """Returns the validation metrics stored with a step; None if it was not validated."""
        return self._manager.metrics(step)

    def save(
        self,
        step: int,
        state: TrainState,
        data_iterator,
        metrics: dict[str, float] | None,
        window: dict[str, list[float]] | None = None,
    ) -> None:
        """Saves in the background; `metrics` are the validation's at this step, if there was one.

        The state of the data iterator is that of the global batches: it is saved once, and restored by any number of
        processes. `window` has the sums of metrics that wait for the next log line. WriteError if it cannot be
        written, or the save before this one could not.
        """
        items = {"data": ocp.args.JsonSave(data_iterator.get_state()), "window": ocp.args.JsonSave(window or {})}
        self._save(step, state, metrics, **items)

    def save_weights(self, state: TrainState) -> None:
        """Saves a state that has no data iterator, as converted weights have none, at its step."""
        self._save(int(state.step), state, None)

    def _save(self, step, state, metrics, **items):
        self.wait()
        self._delete_old()
        if self._gone():  # Orbax would make it anew, and train on beside a lost run
            raise WriteError(f"cannot save step {step:,} in '{self.folder}': the folder is gone")
        self._saving = step
        items = ocp.args.Composite(state=ocp.args.StandardSave(_of_all_processes(state)), **items)
        with self._failing():
            saved = self._manager.save(step, args=items, metrics=metrics)
        if not saved:
            raise RuntimeError(f"Orbax does not save step {step} after step {self._manager.latest_step()}")

    def _seal(self):
        """Writes checksums into the folder that Orbax is about to rename: no step is ever there without its own."""
        (folder,) = self.folder.glob(f"{self._saving}.orbax-checkpoint-tmp*")
        checksums.seal(folder)

    def _gone(self):
        """Returns whether the folder is not there, or is another one: what Orbax writes makes its parents."""
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
                return  # told already: Orbax raises what ails a save at each call that waits for it
            why = "the folder is gone" if self._gone() else reason(error)
            raise WriteError(f"cannot save step {step:,} in '{self.folder}': {why}") from error

    def _check(self, path):
        if damage := checksums.damage(path):
            raise UserError(f"checkpoint {path.name} in '{self.folder}' is damaged: {damage}")

    def sound(self) -> list[int]:
        """Reads all checkpoints in the folder, and returns the steps of those that are whole."""
        return [int(path.name) for path in _step_folders(self.folder) if not checksums.damage(path)]

    def restore(self, step: int, like: TrainState, data_iterator=None) -> TrainState:
        """Returns the state of a step, shaped as `like` (arrays or shapes); restores a given iterator in place.

        It comes to where `like` lies on a mesh, else to the first device, however many there were when it was saved.
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
            raise UserError(f"checkpoint {step} in '{self.folder}' is not of this config's model: {reason}") from error
        if data_iterator is not None:
            data_iterator.set_state(restored["data"])
        # Arrays tied to a device would compile all steps anew, where those of a new run are in the compilation cache.
        return jax.tree.map(lambda x, old: x if _on_mesh(old) else jnp.array(np.asarray(x)), restored["state"], like)

    def window(self, step: int) -> dict[str, list[float]]:
        """Returns the sums of metrics that were saved with a step."""
        return self._manager.restore(step, args=ocp.args.Composite(window=ocp.args.JsonRestore()))["window"]

    def last(self) -> list[int]:
        """Returns the steps of the `keep` latest checkpoints, the latest last."""
        self.choose("latest")  # raises where there is none
        return self._steps()[-self._keep :]

    def choose(self, which: str) -> int:
        """Returns the step of "best" (the latest where nothing was validated), "latest" or a number."""
        steps = self._steps()
        if not steps:
            folders = _step_folders(self.folder)
            torn = "".join(f"; {path.name} is not whole: {checksums.damage(path)}" for path in folders)
            raise UserError(f"'{self.folder}' holds no checkpoint{torn}")
        if which == "best":
            return self.best if self.best is not None else self.latest
        if which == "latest":
            return self.latest
        if not which.isdigit() or int(which) not in steps:
            raise UserError(f"no checkpoint '{which}' in '{self.folder}'. Known: best, latest, {AVERAGE}, {steps}")
        return int(which)

    def wait(self) -> None:
        """Waits for saves under way; WriteError if one failed."""
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
            with contextlib.suppress(*_FAILURES):  # what `wait` has told already
                self._manager.close()


def _everywhere():
    return jax.sharding.NamedSharding(jax.sharding.Mesh(jax.devices(), ("all",)), jax.sharding.PartitionSpec())


def _of_all_processes(state):
    """Returns the state as arrays of all processes, which pmap leaves as arrays of each: Orbax refuses those."""
    if jax.process_count() == 1:
        return state

    def joined(x):
        return (
            x if not x.is_fully_addressable else jax.make_array_from_callback(x.shape, place, np.asarray(x).__getitem__)
        )

    place = _everywhere()
    return jax.tree.map(joined, state)


def _on_mesh(x):
    """Returns where an array lies on a mesh; None if it lies on none."""
    sharding = getattr(x, "sharding", None)
    return sharding if isinstance(sharding, jax.sharding.NamedSharding) else None
