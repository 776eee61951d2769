"""Sequence-to-sequence training and search: translation, captioning, anything whose output is a token sequence."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from attnjax import decoding
from attnjax.decoding.steps import Ints
from attnjax.metrics.sums import Metrics
from attnjax.nn.freezing import check_frozen, frozen_parts, without_gradients
from attnjax.nn.masks import PAD
from attnjax.nn.norm import counting_rows
from attnjax.objectives import Batch, LossAndAux, PyTree
from attnjax.objectives.losses import logits_at, token_losses


@dataclasses.dataclass(frozen=True)
class SequenceObjective:
    """Cross-entropy of the next token, by teacher forcing.

    Batches: target (B, T + 1) int32, from bos to eos, and the model's inputs: source (B, S) int32, ending in eos, image
    (B, H, W, C) float32, or both. Tokens are padded with pad; rows of padding alone do not count, nor do rows where an
    optional mask (B,) bool is False, as of images that could not be read. Packed batches also have `source_segments`,
    `source_positions` (B, S), `target_segments` and `target_positions` (B, T + 1).
    The target is shifted here and nowhere else: the decoder reads its first T tokens and predicts its last T.
    """

    model: nn.Module
    label_smoothing: float = 0.0
    smoothing_form: str = "uniform"
    reads: tuple[str, ...] = ("source",)  # the model's inputs: "source", "image" or both
    frozen: tuple[str, ...] = ()  # parts of the model that are not trained; see `nn.freezing`

    def __post_init__(self):
        check_frozen(self.model, self.frozen)

    def init(self, rng: jax.Array, batch: dict[str, jax.ShapeDtypeStruct]) -> tuple[PyTree, PyTree]:
        """Returns parameters and model state (an image encoder's batch statistics, or empty) for these shapes."""
        ones = {name: jnp.ones(struct.shape, struct.dtype) for name, struct in batch.items()}
        variables = dict(jax.jit(self.model.init)(rng, target=ones["target"][:, :-1], **self._inputs(ones)))
        return variables.pop("params"), variables

    def logits(self, params: PyTree, model_state: PyTree, batch: Batch) -> jax.Array:
        """Returns logits (B, T, V) float32 for the labels `next_tokens(batch)`, in evaluation mode."""
        return self._apply({"params": params, **model_state}, batch, train=False)

    def loss(self, params: PyTree, model_state: PyTree, batch: Batch, rng: jax.Array) -> LossAndAux:
        """Returns (sum of losses, (weight, metrics, new model state)), in training mode; the weight counts tokens."""
        batch = _without_masked(batch)
        variables = {"params": without_gradients(params, self.frozen), **model_state}
        options = {"train": True, "rngs": {"dropout": rng}, "mutable": list(model_state)}
        with frozen_parts(self.frozen), counting_rows((batch["target"] != PAD).any(1)):
            logits, new_state = self._apply(variables, batch, **options)
        losses, metrics = self._losses(logits, batch)
        tokens = metrics["nll"][1]
        return losses.sum(), (tokens, metrics | {"loss": (losses.sum(), tokens)}, new_state)

    def evaluate(self, params: PyTree, model_state: PyTree, batch: Batch) -> Metrics:
        """Returns the sums over tokens of loss, without label smoothing, and accuracy, in evaluation mode."""
        _, metrics = self._losses(self.logits(params, model_state, batch), _without_masked(batch))
        metrics["loss"] = metrics.pop("nll")
        return metrics

    def generate(
        self,
        params: PyTree,
        model_state: PyTree,
        batch: Batch,
        options: decoding.Options,
        max_lengths: Ints = None,
        prefix: Ints = None,
    ) -> decoding.Hypotheses:
        """Returns Hypotheses (B, n_best) for the inputs of a batch, by beam search, or greedy search if beam_size is 1.

        max_lengths and prefix are as for `decoding.greedy`.
        """
        variables = {"params": params, **model_state}
        inputs = self._inputs(batch)
        cache: PyTree = self.model.apply(variables, **inputs, length=options.max_length, method="start_cache")
        # The keys and values of cross-attention are equal for all hypotheses of an example: no need to reorder them.
        memory = decoding.expand(cache["memory"], options.beam_size)

        def step(state, token, position):
            now = {"memory": memory, "state": state}
            logits, after = self.model.apply(variables, now, token, position, method="step")
            return logits, after["state"]

        search = decoding.greedy if options.beam_size == 1 else decoding.beam_search
        return search(step, cache["state"], options, max_lengths=max_lengths, prefix=prefix)

    def cache_bytes(self, params: PyTree, model_state: PyTree, batch: Batch, length: int) -> int:
        """Returns the bytes of the cache of `length` tokens with which `generate` starts on a batch, for one beam."""

        def start(variables, inputs):
            return self.model.apply(variables, **inputs, length=length, method="start_cache")

        cache = jax.eval_shape(start, {"params": params, **model_state}, self._inputs(batch))
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(cache))

    def _apply(self, variables, batch, **options):
        packing = {}
        if "target_segments" in batch:
            packing = {
                "source_segments": batch["source_segments"],
                "target_segments": batch["target_segments"][:, :-1],
                "positions": (batch["source_positions"], batch["target_positions"][:, :-1]),
            }
        return self.model.apply(variables, target=batch["target"][:, :-1], **self._inputs(batch), **packing, **options)

    def _inputs(self, batch):
        return {name: batch[name] for name in self.reads}

    def _losses(self, logits, batch):
        """Returns the smoothed losses (B, T), and metrics: negative log-likelihood and accuracy."""
        labels = next_tokens(batch)
        losses, nll = token_losses(logits, labels, smoothing=self.label_smoothing, form=self.smoothing_form, pad=PAD)
        real = (labels != PAD).astype(jnp.float32)
        # Not by argmax: XLA does not vectorize it on CPU.
        right = (logits_at(logits, labels) >= logits.max(-1)) * real
        return losses, {"nll": (nll.sum(), real.sum()), "accuracy": (right.sum(), real.sum())}


def _without_masked(batch):
    """Returns the batch with padding as the target of masked rows."""
    if "mask" not in batch:
        return batch
    return batch | {"target": jnp.where(batch["mask"][:, None], batch["target"], PAD)}


def next_tokens(batch: Batch) -> jax.Array:
    """Returns the decoder's labels, (B, T) int32: the target shifted by one, pad where no token is predicted.

    In a packed row no token is predicted from the last one of a pair: the next is the bos of another pair.
    """
    labels = batch["target"][:, 1:]
    if "target_segments" not in batch:
        return labels
    segments = batch["target_segments"]
    return jnp.where(segments[:, 1:] == segments[:, :-1], labels, PAD)
