"""The training state: one struct, never stacked by device, the same on disk under every kind of parallelism."""

from typing import TYPE_CHECKING, Any

import flax
import jax
import jax.numpy as jnp
import optax

from attnjax.objectives import Objective

PyTree = Any


@flax.struct.dataclass
class TrainState:
    """Everything that a training step reads and writes.

    step: () int32, the number of steps taken. params, ema: float32 trees; ema is None when off. model_state: the other
    variable collections. opt_state: Optax's. rng: (2,) uint32, constant; each step folds in its number.
    """

    step: jax.Array
    params: PyTree
    model_state: PyTree
    opt_state: PyTree
    ema: PyTree
    rng: jax.Array

    if TYPE_CHECKING:  # flax.struct adds it

        def replace(self, **changes: Any) -> "TrainState": ...

    @property
    def eval_params(self) -> PyTree:
        """The averaged weights if the run averages, else the weights."""
        return self.params if self.ema is None else self.ema


def create(
    objective: Objective, optimizer: optax.GradientTransformation, example: dict, seed: int, *, ema: bool
) -> TrainState:
    """Returns the state at step 0 for batches like `example`, of ShapeDtypeStruct; by a seed."""
    init_rng, rng = jax.random.split(jax.random.PRNGKey(seed))
    params, model_state = objective.init(init_rng, example)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        model_state=model_state,
        opt_state=optimizer.init(params),
        ema=jax.tree.map(jnp.copy, params) if ema else None,
        rng=rng,
    )
