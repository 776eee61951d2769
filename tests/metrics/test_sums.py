"""Means over batches."""

import numpy as np
import pytest

from attnjax.errors import UserError
from attnjax.metrics.sums import mean_over


def measure(variables, batch):
    return {"loss": (np.float32(batch["loss"]), np.float32(batch["weight"]))}


def test_the_mean_counts_each_example_once():
    batches = [{"loss": 6.0, "weight": 3}, {"loss": 0.0, "weight": 0}, {"loss": 4.0, "weight": 1}]
    assert mean_over(measure, None, batches) == {"loss": 2.5}


@pytest.mark.parametrize("batches", [[], [{"loss": 0.0, "weight": 0}]])
def test_nothing_is_no_result(batches):
    with pytest.raises(UserError, match="not one example could be read"):
        mean_over(measure, None, batches)
