"""Orbax checkpoints of the training state and the data iterator together."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from grain.checkpoint import CheckpointRestore, CheckpointSave
from orbax.checkpoint.checkpoint_managers import preservation_policy as policy

from attnjax.errors import UserError
from attnjax.training.state import TrainState

AVERAGE = "average"


def has_checkpoint(workdir: Path) -> bool:
    """Returns whether a run folder holds a checkpoint to go on from; saves cut off half-way do not count."""
    return any(path.name.isdigit() for path in (workdir / "checkpoints").glob("*"))


class Checkpoints:
    """The checkpoints of one run folder: the `keep` latest, and the best by the validation's `best_metric`.

    The best has the least of "loss", or the most of any other metric.
    """

    def __init__(self, workdir: Path, best_metric: str, *, keep: int = 1, read_only: bool = False):
        if keep < 1:
            raise UserError(f"keep_checkpoints={keep}: it should be 1 or more")
        self.folder = Path(workdir).resolve() / "checkpoints"
        if read_only and not self.folder.is_dir():
            raise UserError(f"'{workdir}' has no checkpoints yet")
        self._keep = keep

        def score(metrics):
            return -metrics[best_metric] if best_metric == "loss" else metrics[best_metric]

        best = policy.BestN(get_metric_fn=score, n=1, keep_checkpoints_without_metrics=False)
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policy.AnyPreservationPolicy([policy.LatestN(keep), best]),
                best_fn=score,
                cleanup_tmp_directories=not read_only,
                read_only=read_only,
            ),
        )

    @property
    def latest(self) -> int | None:
        return self._manager.latest_step()

    @property
    def best(self) -> int | None:
        """The step of the best validation; None if no checkpoint was ever validated."""
        return self._manager.best_step()

    def metrics(self, step: int) -> dict[str, float] | None:
        """Returns the validation metrics stored with a step; None if it was not validated."""
        return self._manager.metrics(step)

    def save(self, step: int, state: TrainState, data_iterator, metrics: dict[str, float] | None) -> None:
        """Saves in the background; `metrics` are the validation's at this step, if there was one."""
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), data=CheckpointSave(data_iterator))
        self._manager.save(step, args=items, metrics=metrics)

    def save_weights(self, state: TrainState) -> None:
        """Saves a state that has no data iterator, as converted weights have none, at its step."""
        items = ocp.args.Composite(state=ocp.args.StandardSave(state))
        self._manager.save(int(state.step), args=items)

    def restore(self, step: int, like: TrainState, data_iterator=None) -> TrainState:
        """Returns the state of a step, shaped as `like` (arrays or shapes); restores a given iterator in place.

        It comes to where `like` lies on a mesh, else to the first device, however many there were when it was saved.
        """
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=_on_mesh(x) or device), like)
        items = {"state": ocp.args.StandardRestore(shapes)}
        if data_iterator is not None:
            items["data"] = CheckpointRestore(data_iterator)
        try:
            state = self._manager.restore(step, args=ocp.args.Composite(**items))["state"]
        except (ValueError, KeyError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"checkpoint {step} in '{self.folder}' is not of this config's model: {reason}") from error
        # Arrays tied to a device would compile all steps anew, where those of a new run are in the compilation cache.
        return jax.tree.map(lambda x: x if _on_mesh(x) else jnp.array(np.asarray(x)), state)

    def last(self) -> list[int]:
        """Returns the steps of the `keep` latest checkpoints, the latest last."""
        self.choose("latest")  # raises where there is none
        return sorted(self._manager.all_steps())[-self._keep :]

    def choose(self, which: str) -> int:
        """Returns the step of "best" (the latest where nothing was validated), "latest" or a number."""
        steps = self._manager.all_steps()
        if not steps:
            raise UserError(f"'{self.folder}' holds no checkpoint")
        if which == "best":
            return self.best if self.best is not None else self.latest
        if which == "latest":
            return self.latest
        if not which.isdigit() or int(which) not in steps:
            raise UserError(
                f"no checkpoint '{which}' in '{self.folder}'. Known: best, latest, {AVERAGE}, {sorted(steps)}"
            )
        return int(which)

    def wait(self) -> None:
        """Waits for saves under way."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()


def _on_mesh(x):
    """Returns where an array lies on a mesh; None if it lies on none."""
    sharding = getattr(x, "sharding", None)
    return sharding if isinstance(sharding, jax.sharding.NamedSharding) else None
