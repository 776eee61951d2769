"""The multi-layer perceptron: fully connected layers on flattened images."""

from collections.abc import Sequence

import flax.linen as nn

from attnjax.nn.activations import activation
from attnjax.nn.dropout import Dropout


class MLP(nn.Module):
    """Multi-layer perceptron on flattened inputs: (B, ...) -> logits (B, num_classes) float32."""

    num_classes: int
    widths: Sequence[int] = (256, 128, 64)
    activation: str = "relu"
    dropout: float = 0.0
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x, *, train: bool = False):
        x = x.reshape(x.shape[0], -1)
        for i, width in enumerate(self.widths):
            dense = nn.Dense(width, kernel_init=nn.initializers.he_normal(), dtype=self.dtype, name=f"fc{i + 1}")
            x = activation(self.activation)(dense(x))
            x = Dropout(self.dropout)(x, train=train)
        return nn.Dense(self.num_classes, name="head")(x)
