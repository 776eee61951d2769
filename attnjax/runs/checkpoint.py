"""Saving checkpoints: the training state, the data iterator and the run's record, each file with a checksum."""

import contextlib
import math
import shutil
import time
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import preservation_policy as policy

from attnjax.errors import UserError, WriteError
from attnjax.files import reason, writing
from attnjax.runs import checksums
from attnjax.runs.reader import REPLACED, CheckpointReader, step_folders
from attnjax.training.state import TrainState

# In checkpoints/, so that nothing is moved to another disk. Orbax moves a step to the first before deleting it: a stop
# in the middle leaves no partial checkpoint behind.
_OLD, DAMAGED = ".old", "damaged"

# What Orbax and TensorStore raise when a file cannot be written or read.
_FAILURES = (OSError, ValueError, RuntimeError)


def set_aside_damaged(workdir: Path) -> list[str]:
    """Reads all checkpoints, moves the damaged ones to `checkpoints/damaged/`, and returns a line on each.

    Raises UserError, and moves nothing, if there are checkpoints but none of them is intact.
    """
    folder = workdir / "checkpoints"
    steps = step_folders(folder)
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
        target = _free_name(folder / DAMAGED / path.name)
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


class Checkpoints(CheckpointReader):
    """The checkpoints of one run folder, opened to save more: the `keep` latest are kept, and the best.

    Damaged checkpoints are set aside first, and `damage` has a line on each. saved_at: `time.monotonic()` at the latest
    save, or at the start.
    """

    def __init__(self, workdir: Path, best_metric: str, *, keep: int = 1):
        super().__init__(workdir, best_metric, keep=keep)
        self._saving, self.saved_at = None, time.monotonic()
        self._restore_replaced()
        self.damage = set_aside_damaged(self.folder.parent)

        def score(metrics):
            found = self.score(metrics)
            return -math.inf if found is None else found

        best = policy.BestN(get_metric_fn=score, n=1, keep_checkpoints_without_metrics=False)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policy.AnyPreservationPolicy([policy.LatestN(keep), best]),
            best_fn=score,
            cleanup_tmp_directories=True,
            todelete_subdir=_OLD,
            async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
        )
        with writing(self.folder):
            self._manager = ocp.CheckpointManager(self.folder, options=options)
        self._inode = self.folder.stat().st_ino
        self._delete_old()

    def save(
        self,
        step: int,
        state: TrainState,
        data_iterator,
        metrics: dict[str, float] | None,
        record: dict[str, Any] | None = None,
    ) -> None:
        """Saves in the background; `metrics` are the validation metrics at this step, if it was validated.

        The state of the data iterator counts global batches: it is saved once, and restored by any number of
        processes. `record` is what `CheckpointReader.record` returns. A step that was saved before is replaced.
        WriteError if the checkpoint cannot be written, or the save before this one failed.
        """
        self._save(step, state, metrics, record, data=ocp.args.JsonSave(data_iterator.get_state()))

    def save_weights(self, state: TrainState, record: dict[str, Any] | None = None) -> None:
        """Saves a state without a data iterator, as of converted weights, at its step."""
        self._save(int(state.step), state, None, record)

    def _save(self, step, state, metrics, record, **items):
        self.wait()
        self._delete_old()
        if self._gone():  # Orbax would create it again, without the earlier checkpoints
            raise WriteError(f"cannot save step {step:,} in '{self.folder}': the folder is gone")
        if step in self.steps():
            self._set_aside(step)
        self._saving, self.saved_at = step, time.monotonic()
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(record or {}), **items)
        # A validation that is not finite cannot be the best: it is in the log alone.
        metrics = None if self.score(metrics) is None else metrics
        with self._failing():
            saved = self._manager.save(step, args=items, metrics=metrics)
        if not saved:
            raise RuntimeError(f"Orbax does not save step {step} after step {self._manager.latest_step()}")

    def _seal(self):
        """Writes checksums into the folder that Orbax is about to rename: no checkpoint ever exists without them."""
        (folder,) = self.folder.glob(f"{self._saving}.orbax-checkpoint-tmp*")
        checksums.seal(folder, self._saving)

    def _gone(self):
        """Returns whether the folder was removed or replaced: Orbax creates missing parents silently."""
        return not self.folder.is_dir() or self.folder.stat().st_ino != self._inode

    def _set_aside(self, step):
        """Makes room for a step to be saved again; until it is, a stop brings the old one back."""
        if jax.process_index() == 0:
            with writing(self.folder):
                self.path(step).rename(self.folder / f"{REPLACED}{step}")
        _synchronize("the step is set aside")
        self._manager.reload()

    def _restore_replaced(self):
        for path in self.folder.glob(f"{REPLACED}*") if jax.process_index() == 0 else ():
            if not (step := self.folder / path.name.removeprefix(REPLACED)).exists():
                with writing(self.folder):
                    path.rename(step)

    def _delete_old(self):
        if jax.process_index() == 0:
            for path in (self.folder / _OLD, *self.folder.glob(f"{REPLACED}*")):
                shutil.rmtree(path, ignore_errors=True)

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

    def intact(self) -> list[int]:
        """Reads all checkpoints in the folder, and returns the steps of those that are intact."""
        return [int(path.name) for path in step_folders(self.folder) if not checksums.damage(path)]

    def wait(self) -> None:
        """Waits for pending saves; WriteError if one failed."""
        with self._failing():
            self._manager.wait_until_finished()
        step, self._saving = self._saving, None
        if step is not None and not checksums.is_sealed(self.path(step)):
            raise WriteError(f"cannot save step {step:,} in '{self.folder}': the folder is gone")

    def close(self) -> None:
        try:
            self.wait()
            self._delete_old()
        finally:
            with contextlib.suppress(*_FAILURES):  # already reported by `wait`
                self._manager.close()
