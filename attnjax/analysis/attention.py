"""What a model attends to: a Vision Transformer among its patches, a decoder in its source."""

from collections.abc import Sequence

import numpy as np

from attnjax.data.text import BOS
from attnjax.errors import UserError
from attnjax.training.run import Run


def attention_maps(run: Run, image) -> np.ndarray:
    """Returns the attention weights of every layer, (L, B, heads, N, N), for images (B, H, W, C) float32."""
    variables = {"params": run.params, **run.model_state}
    _, state = run.task.model.apply(variables, image, mutable=["intermediates"])
    blocks = state.get("intermediates", {})
    layers = sorted((name for name in blocks if name.startswith("block")), key=lambda name: int(name[5:]))
    if not layers:
        raise UserError(f"a {run.config.model.name} has no attention to show; use a ViT's run folder")
    return np.stack([blocks[name]["attention"]["attention"][0] for name in layers])


def source_attention(run: Run, line: str, subwords: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Returns the source's subwords (S), and what each target subword (T) looks at, (L, heads, T, S).

    `line` is what was translated, `subwords` its translation; both end in eos. An RNN has one layer and one head.
    """
    model, vocabulary = run.task.model, run.workload.vocabulary
    source = run.workload.cut(run.workload.encode([line])[0])
    target = [BOS, *vocabulary.target.piece_to_id(list(subwords))]
    variables = {"params": run.params, **run.model_state}
    arrays = (np.array([ids], np.int32) for ids in (source, target[:-1]))
    _, state = model.apply(variables, *arrays, mutable=["intermediates"])
    found = state.get("intermediates", {})
    if "decoder" in found:
        maps = [found["decoder"]["attention"][0][:, None]]
    else:
        layers = sorted((name for name in found if name.startswith("decoder")), key=lambda name: int(name[8:]))
        maps = [found[name]["cross_attention"]["attention"][0] for name in layers]
    if not maps:
        raise UserError("this model has no attention to show: it is an RNN with model.attention=none")
    return list(vocabulary.source.id_to_piece(source)), np.stack(maps)[:, 0]


def rollout(weights: np.ndarray) -> np.ndarray:
    """Returns attention rollout (Abnar & Zuidema 2020, section 3): (L, B, heads, N, N) -> (B, N, N).

    Row i says how much of output token i comes from each input token, if each layer mixes half attention, half
    residual. Rows sum to one.
    """
    identity = np.eye(weights.shape[-1])
    total = np.broadcast_to(identity, (weights.shape[1], *identity.shape))
    for layer in weights.mean(2):
        total = (0.5 * layer + 0.5 * identity) @ total
    return total


def over_patches(weights: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Returns what the output reads from each patch, (..., *grid), from weights (..., N, N).

    With a class token (one token more than patches) its row is taken, without the token itself; else the mean row.
    """
    patches = grid[0] * grid[1]
    row = weights[..., 0, 1:] if weights.shape[-1] == patches + 1 else weights.mean(-2)
    return row.reshape(*row.shape[:-1], *grid)
