"""Blocks in a row: what the backward pass computes again to save memory, and one compiled block for all of them.

Both change how a model is computed, not what: the parameters have the same names, and the results differ by rounding.
XLA's compiler for CPUs finds what is computed twice outside of a scan, and keeps it after all: there, memory is saved
with `scan` alone.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from attnjax.errors import UserError, nearest


def _weighted(primitive, *avals, **params) -> bool:
    """True for products with weights: those of maps, and of matrices without a batch of them, as attention's have."""
    convolution = primitive is jax.lax.conv_general_dilated_p
    return convolution or jax.checkpoint_policies.dots_with_no_batch_dims_saveable(primitive, *avals, **params)


# What of a block the forward pass keeps for the backward pass, which computes the rest again (Chen et al. 2016).
REMATS = {
    "none": jax.checkpoint_policies.everything_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
    # What is dear to compute. Attention's weights, quadratic in the tokens, are not kept; all else is elementwise.
    "dots": _weighted,
}


def _in_the_open(block):
    """True where the block's own variables are wanted: its parameters at the start, its intermediates."""
    return block.is_initializing() or block.is_mutable_collection("intermediates")


def _check(remat):
    if remat not in REMATS:
        raise UserError(f"unknown remat '{remat}', {nearest(remat, REMATS)}")


def call(block: nn.Module, *inputs, remat: str, **options):
    """Returns block(*inputs, **options), differentiated as `remat` of REMATS says; UserError for another.

    `options` that are no arrays belong in here. Dropout draws the same, batch statistics are updated as ever.
    """
    _check(remat)
    if remat == "none" or _in_the_open(block):
        return block(*inputs, **options)
    return nn.remat(lambda block, *inputs: block(*inputs, **options), policy=REMATS[remat])(block, *inputs)


def run(blocks: Sequence[nn.Module], x, *inputs, masks: Sequence = (None,), remat: str, scan: bool, train: bool):
    """Returns x after block(x, *inputs, mask=mask, train=train) of one block after the other.

    Block i has mask i % len(masks); blocks so many apart should differ in nothing but weights and `drop_path`. With
    `scan` they are compiled once: `jax.lax.scan` goes over their stacked parameters. It draws other dropout than the
    loop does. Where there is nothing to repeat, at the start, and where intermediates are wanted, there is no scan.
    """
    repeats = len(blocks) // len(masks) if scan else 0
    scanned = repeats * len(masks) if repeats > 1 and not _in_the_open(blocks[0]) else 0
    if scanned:
        x = _scan(blocks[:scanned], x, *inputs, masks=masks, remat=remat, train=train)
    for i, block in enumerate(blocks[scanned:]):
        x = call(block, x, *inputs, mask=masks[i % len(masks)], remat=remat, train=train)
    return x


def _scan(blocks, x, *inputs, masks, remat, train):
    """Returns x after the blocks, as many in a row as there are masks at each step of the scan."""
    drops_paths = train and any(getattr(block, "drop_path", 0.0) for block in blocks)

    def of(block):
        keys = {"dropout": block.make_rng("dropout")} if train and block.has_rng("dropout") else {}
        return block.variables["params"], keys, {"drop_path": jnp.float32(block.drop_path)} if drops_paths else {}

    def pure(block, mask):
        def apply(x, params, keys, fields):
            bare = block.clone(parent=None, **fields)
            return bare.apply({"params": params}, x, *inputs, mask=mask, train=train, rngs=keys)

        # A loop's two passes have nothing in common that a compiler could see and keep.
        return apply if remat == "none" else jax.checkpoint(apply, policy=REMATS[remat], prevent_cse=False)

    row = [pure(block, mask) for block, mask in zip(blocks, masks, strict=False)]

    def step(x, layers):
        for apply, layer in zip(row, layers, strict=True):
            x = apply(x, *layer)
        return x, None

    turns = [map(of, blocks[i :: len(masks)]) for i in range(len(masks))]
    return jax.lax.scan(step, x, [jax.tree.map(lambda *leaves: jnp.stack(leaves), *turn) for turn in turns])[0]
