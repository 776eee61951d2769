"""Attention maps of trained models: an image encoder's over its patches, a decoder's over its source or image.

They are read from the "intermediates" that the model's attention layers sow.
"""

import re
from collections.abc import Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from attnjax.data.text.vocabulary import BOS
from attnjax.errors import UserError
from attnjax.runs.folder import Run


def check_choice(run: Run, layer: int, head: int | None) -> None:
    """Raises UserError, before a search, for what `select` would refuse after it."""
    text = run.config.model.get("text", run.config.model)
    _check(text.get("decoder_depth", 1), text.get("num_heads", 1), layer, head)  # an RNN's decoder has one of each


def _check(layers, heads, layer, head):
    if not -layers <= layer < layers or (head is not None and not 0 <= head < heads):
        raise UserError(f"no layer {layer}, head {head}: there are {layers} layers of {heads} heads, from 0")


def select(weights: np.ndarray, layer: int, head: int | None) -> tuple[np.ndarray, str]:
    """Returns a layer and head of (L, heads, ...), or the mean over heads if `head` is None, and a title for it."""
    layers, heads = weights.shape[:2]
    _check(layers, heads, layer, head)
    title = f"layer {layer % layers}, {'mean over heads' if head is None else f'head {head}'}"
    return weights[layer].mean(0) if head is None else weights[layer, head], title


def attends_to_patches(run: Run) -> bool:
    """Returns whether `patch_attention` can be used: the image model's blocks are global attention over patches."""
    if not hasattr(run.model, "tokens"):
        return False
    found = jax.eval_shape(lambda image: _intermediates(run, image, method="tokens")[1], run.task.example["image"])
    return bool(_layers(found, "block"))


def patch_attention(run: Run, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns what the last block's heads read from each patch (B, heads, rows, columns), and the rollout's (B, ...).

    `images` is (B, H, W, C) float32, normalized as for the model. See `over_patches` and `rollout`.
    """
    (_, grid), found = _intermediates(run, images, method="tokens")
    weights = np.stack([block["attention"]["attention"][0] for block in _layers(found, "block")])
    return over_patches(weights[-1], grid), over_patches(rollout(weights), grid)


def source_attention(run: Run, line: str, subwords: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Returns the source's subwords (S) and the attention of each target subword to them (L, heads, T, S).

    `line` is the source sentence, `subwords` its translation, which ends in eos. An RNN has one layer and one head.
    UserError if the model has no attention.
    """
    vocabulary = run.task.vocabulary
    source = run.task.truncate(run.task.encode([line])[0])
    _, found = _intermediates(run, np.array([source], np.int32), _teacher_forced(vocabulary, subwords))
    if "decoder" in found:  # an RNN
        maps = found["decoder"]["attention"][0][None]
    elif layers := _layers(found, "decoder"):
        maps = np.stack([layer["cross_attention"]["attention"][0] for layer in layers])[:, 0]
    else:
        raise UserError("this model has no attention to plot: it is an RNN with model.attention=none")
    return list(vocabulary.source.id_to_piece(source)), maps


def image_attention(run: Run, image: np.ndarray, subwords: Sequence[str], source: Sequence[int] = ()) -> np.ndarray:
    """Returns a captioner's attention of each output subword to the image, (L, heads, T, rows, columns).

    `image` is (H, W, C) float32, `subwords` end in eos, `source` are the ids of its source sentence, if any. Attention
    to other tokens, the encoder's class token or the source sentence, is left out.
    """
    target = _teacher_forced(run.task.vocabulary, subwords)
    inputs = {"image": image[None]} | ({"source": np.array([source], np.int32)} if source else {})
    _, found = _intermediates(run, target, **inputs)
    (_, (rows, columns)), _ = _intermediates(run, image[None], method=lambda module, x: module.encoder.tokens(x))
    layers = _layers(found["text"], "decoder")
    last = max(name for name in layers[0] if name.startswith("cross_attention"))  # the first may be to the source
    maps = np.stack([layer[last]["attention"][0] for layer in layers])[:, 0, ..., -rows * columns :]
    return maps.reshape(*maps.shape[:-1], rows, columns)


def _intermediates(run, *inputs, **options):
    variables = {"params": run.params, **run.model_state}
    output, state = run.model.apply(variables, *inputs, mutable=["intermediates"], **options)
    return output, state.get("intermediates", {})


def _layers(found, kind) -> list[dict]:
    """Returns the intermediates of the modules `kind`0, `kind`1, ... or, of a list in setup, `kind`_0, `kind`_1, ..."""
    names = {int(match[1]): name for name in found if (match := re.fullmatch(rf"{kind}_?(\d+)", name))}
    return [found[names[number]] for number in sorted(names)]


def _teacher_forced(vocabulary, subwords):
    """Returns the decoder's input (1, T) for the outputs `subwords`."""
    return np.array([[BOS, *vocabulary.target.piece_to_id(list(subwords))][:-1]], np.int32)


def rollout(weights: np.ndarray) -> np.ndarray:
    """Returns attention rollout (Abnar & Zuidema 2020, section 3): (L, B, heads, N, N) -> (B, N, N).

    Row i is the share of each input token in output token i, if each layer is half attention, half residual. Rows sum
    to one.
    """
    total = identity = np.eye(weights.shape[-1])
    for layer in weights.mean(2):
        total = (0.5 * layer + 0.5 * identity) @ total
    return total


def over_patches(weights: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Returns what the output reads from each patch: (..., N, N) -> (..., rows, columns).

    That is the class token's row, without the token itself, if there is one (N is one more than the number of patches);
    else the mean over rows.
    """
    patches = grid[0] * grid[1]
    row = weights[..., 0, 1:] if weights.shape[-1] == patches + 1 else weights.mean(-2)
    return row.reshape(*row.shape[:-1], *grid)


def displayable(config: ConfigDict, images: np.ndarray) -> np.ndarray:
    """Undoes the normalization of images (..., H, W, C), and clips them to [0, 1]."""
    return np.clip(images * np.asarray(config.data.std) + np.asarray(config.data.mean), 0, 1)
