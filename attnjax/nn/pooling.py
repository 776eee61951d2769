"""Max pooling and average pooling of feature maps."""

import flax.linen as nn

from attnjax.errors import check_choice

POOLING = {"max": nn.max_pool, "average": nn.avg_pool}


def pool(x, kind: str, window: int, stride: int, padding: int = 0):
    """Pools (B, H, W, C) over square windows; `kind` is "max" or "average"; `padding` pixels on all four sides."""
    check_choice("pooling", kind, POOLING)
    return POOLING[kind](x, (window, window), strides=(stride, stride), padding=[(padding, padding)] * 2)
