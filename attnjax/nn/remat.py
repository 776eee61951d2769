"""Rematerialization (gradient checkpointing) and scan over a stack of blocks.

Both change how a model is computed and not what it computes: parameters keep their names, results differ by rounding.
On CPUs XLA's common subexpression elimination undoes rematerialization outside a scan, so there only `scan` saves
memory.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from attnjax.errors import check_choice
from attnjax.nn.kernels import row_major


def _has_weights(primitive, *avals, **params) -> bool:
    """True for convolutions and for matrix products without a batch axis, unlike those inside attention."""
    convolution = primitive is jax.lax.conv_general_dilated_p
    return convolution or jax.checkpoint_policies.dots_with_no_batch_dims_saveable(primitive, *avals, **params)


# Which activations of a block are saved for the backward pass; the others are recomputed (Chen et al. 2016).
REMATS = {
    "none": jax.checkpoint_policies.everything_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
    # Saves what is expensive to recompute. The rest is elementwise or attention weights, quadratic in the tokens.
    "dots": _has_weights,
}


def _needs_variables(block):
    """True where the block creates parameters or sows intermediates, which must stay under its own name."""
    return block.is_initializing() or block.is_mutable_collection("intermediates")


def apply_block(block: nn.Module, *inputs, remat: str, **options):
    """Returns block(*inputs, **options), differentiated with the policy `remat` of REMATS; UserError for another.

    Arguments that are not arrays must be `options`. Dropout masks and batch statistics do not depend on `remat`.
    """
    check_choice("remat", remat, REMATS)
    if remat == "none" or _needs_variables(block):
        return block(*inputs, **options)
    return nn.remat(lambda block, *inputs: block(*inputs, **options), policy=REMATS[remat])(block, *inputs)


def apply_blocks(
    blocks: Sequence[nn.Module], x, *inputs, masks: Sequence = (None,), remat: str, scan: bool, train: bool
):
    """Returns x after block(x, *inputs, mask=mask, train=train) of each block in turn.

    Block i has the mask i % len(masks). With `scan`, `jax.lax.scan` over stacked parameters compiles one step of
    len(masks) blocks for all of them; blocks at the same place in a step may differ in weights and `drop_path` only.
    Its dropout masks are not those of the loop. There is no scan at initialization and where intermediates are sown.
    """
    steps = len(blocks) // len(masks)
    x = row_major(x)
    scanned = steps * len(masks) if scan and steps > 1 and not _needs_variables(blocks[0]) else 0
    if scanned:
        x = _scan(blocks[:scanned], x, *inputs, masks=masks, remat=remat, train=train)
    for i, block in enumerate(blocks[scanned:]):
        x = apply_block(block, x, *inputs, mask=masks[i % len(masks)], remat=remat, train=train)
    return x


def _scan(blocks, x, *inputs, masks, remat, train):
    """Returns x after the blocks, by a scan with len(masks) blocks per step."""
    drops_paths = train and any(getattr(block, "drop_path", 0.0) for block in blocks)

    def own(block):
        """Returns what differs between blocks: parameters, rngs, fields."""
        rngs = {"dropout": block.make_rng("dropout")} if train and block.has_rng("dropout") else {}
        return block.variables["params"], rngs, {"drop_path": jnp.float32(block.drop_path)} if drops_paths else {}

    def pure(block, mask):
        def apply(x, params, rngs, fields):
            bare = block.clone(parent=None, **fields)
            return bare.apply({"params": params}, x, *inputs, mask=mask, train=train, rngs=rngs)

        # prevent_cse: forward and backward pass are two loops, between which the compiler finds nothing in common.
        return apply if remat == "none" else jax.checkpoint(apply, policy=REMATS[remat], prevent_cse=False)

    functions = [pure(block, mask) for block, mask in zip(blocks, masks, strict=False)]

    def step(x, layers):
        for apply, layer in zip(functions, layers, strict=True):
            x = apply(x, *layer)
        return x, None

    places = [[own(block) for block in blocks[i :: len(masks)]] for i in range(len(masks))]
    stacked = [jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers) for layers in places]
    return jax.lax.scan(step, x, stacked)[0]
