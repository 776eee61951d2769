"""Normalization layers, with the variants that the models' references use."""

import flax.linen as nn

from attnjax.nn.data_parallel import batch_axis


def layer_norm(epsilon: float, dtype: str, name: str | None) -> nn.LayerNorm:
    """Returns a LayerNorm with the two-pass variance, which does not cancel when the mean is large."""
    return nn.LayerNorm(epsilon=epsilon, use_fast_variance=False, dtype=dtype, name=name)


def batch_norm(train: bool, dtype: str, name: str) -> nn.BatchNorm:
    """Returns a BatchNorm (Ioffe & Szegedy 2015) with statistics of the global batch on any number of devices.

    Momentum 0.9 and epsilon 1e-5 as in He et al.'s and torchvision's models.
    """
    return nn.BatchNorm(
        use_running_average=not train,
        momentum=0.9,
        epsilon=1e-5,
        dtype=dtype,
        axis_name=batch_axis(),
        use_fast_variance=False,
        name=name,
    )
