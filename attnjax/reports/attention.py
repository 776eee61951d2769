"""What a model attends to: a Vision Transformer among its patches, a decoder in its source or its image."""

from collections.abc import Sequence

import numpy as np

from attnjax.data.text.vocabulary import BOS
from attnjax.errors import UserError
from attnjax.runs.folder import Run


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
        maps = found["decoder"]["attention"][0][None]
    elif any(name.startswith("decoder") for name in found):
        maps = _cross_attention(found, "cross_attention")[:, 0]
    else:
        raise UserError("this model has no attention to show: it is an RNN with model.attention=none")
    return list(vocabulary.source.id_to_piece(source)), maps


def image_attention(run: Run, image, subwords: Sequence[str], source: Sequence[int] = ()) -> np.ndarray:
    """Returns where in an image a captioner looks for each subword of its output, (L, heads, T, rows, columns).

    `image` is (H, W, C) float32, `subwords` end in eos, `source` are the ids of the sentence it read, if any. What goes
    to other tokens, an encoder's class token or a source sentence, is left out.
    """
    model, vocabulary = run.task.model, run.workload.vocabulary
    variables = {"params": run.params, **run.model_state}
    target = [BOS, *vocabulary.target.piece_to_id(list(subwords))]
    inputs = {"image": image[None]} | ({"source": np.array([source], np.int32)} if source else {})
    _, state = model.apply(variables, np.array([target[:-1]], np.int32), **inputs, mutable=["intermediates"])
    _, (rows, columns) = model.apply(variables, image[None], method=lambda module, x: module.encoder.tokens(x))
    last = "cross_attention2" if len(model.text.cross_attention) == 2 else "cross_attention"
    maps = _cross_attention(state["intermediates"]["text"], last)[:, 0, ..., -rows * columns :]
    return maps.reshape(*maps.shape[:-1], rows, columns)


def _cross_attention(intermediates, name) -> np.ndarray:
    """Returns the weights of all layers of a decoder, (L, B, heads, T, S)."""
    layers = sorted((layer for layer in intermediates if layer.startswith("decoder")), key=lambda name: int(name[8:]))
    return np.stack([intermediates[layer][name]["attention"][0] for layer in layers])


def chosen(weights: np.ndarray, layer: int, head: int | None) -> tuple[np.ndarray, str]:
    """Returns the weights of a layer and a head, or the mean over heads, of (L, heads, ...), and what to call them."""
    layers, heads = weights.shape[:2]
    if not -layers <= layer < layers or (head is not None and not 0 <= head < heads):
        raise UserError(f"no layer {layer}, head {head}: there are {layers} layers of {heads} heads, from 0")
    name = f"layer {layer % layers}, {'mean over heads' if head is None else f'head {head}'}"
    return weights[layer].mean(0) if head is None else weights[layer, head], name


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
