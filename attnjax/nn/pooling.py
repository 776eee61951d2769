"""Max and average pooling over image maps, by name."""

import flax.linen as nn

from attnjax.errors import UserError, nearest

POOLING = {"max": nn.max_pool, "average": nn.avg_pool}


def pool(x, kind: str, window: int, stride: int, padding: int = 0):
    """Pools (B, H, W, C) by a square window; `kind` is "max" or "average"; padding on all four sides, in pixels."""
    if kind not in POOLING:
        raise UserError(f"unknown pooling '{kind}', {nearest(kind, POOLING)}")
    return POOLING[kind](x, (window, window), strides=(stride, stride), padding=[(padding, padding)] * 2)
