"""States of training for tests that only need some weights."""

import jax
import numpy as np


def random_state(experiment):
    """Returns a state of step 0 and random positive arrays; unlike the initial state it needs nothing compiled."""
    rng = np.random.default_rng(0)
    state = jax.tree.map(lambda x: np.abs(rng.normal(size=x.shape)).astype(x.dtype), experiment.state_shapes())
    return state.replace(step=np.int32(0))
