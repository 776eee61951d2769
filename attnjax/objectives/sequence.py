"""Translation, captioning: any task whose output is a sequence of tokens."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from attnjax import decoding
from attnjax.metrics.sums import Metrics
from attnjax.nn.masks import PAD
from attnjax.objectives import PyTree
from attnjax.objectives.losses import token_losses


@dataclasses.dataclass(frozen=True)
class SequenceObjective:
    """Cross-entropy over the next token, by teacher forcing.

    Batches: target (B, T + 1) int32, from bos to eos, and what the model reads: source (B, S) int32, ending in eos,
    image (B, H, W, C) float32, or both. Tokens are filled up with pad, and rows of nothing else count for nothing;
    packed rows also bring `source_segments`, `source_positions`, `target_segments`, `target_positions` of these shapes.
    The target is shifted here and nowhere else: the decoder reads its first T tokens and predicts its last T.
    """

    model: nn.Module
    label_smoothing: float = 0.0
    smoothing_form: str = "uniform"
    reads: tuple[str, ...] = ("source",)  # what the model reads of a batch: "source", "image" or both

    def init(self, rng: jax.Array, batch: dict[str, jax.ShapeDtypeStruct]) -> tuple[PyTree, PyTree]:
        """Returns parameters and model state (an image encoder's batch statistics, if any) for these shapes."""
        ones = {name: jnp.ones(struct.shape, struct.dtype) for name, struct in batch.items()}
        variables = dict(jax.jit(self.model.init)(rng, target=ones["target"][:, :-1], **self._inputs(ones)))
        return variables.pop("params"), variables

    def logits(self, params: PyTree, model_state: PyTree, batch: dict) -> jax.Array:
        """Returns (B, T, vocabulary) float32, in evaluation mode, for the tokens `next_tokens` names."""
        return self._apply({"params": params, **model_state}, batch, train=False)

    def loss(self, params: PyTree, model_state: PyTree, batch: dict, rng: jax.Array):
        """Returns (sum of losses, (weight, metrics, new model state)), in training mode; the weight counts tokens."""
        variables = {"params": params, **model_state}
        logits, new_state = self._apply(variables, batch, train=True, rngs={"dropout": rng}, mutable=list(model_state))
        losses, metrics = self._losses(logits, batch)
        tokens = metrics["nll"][1]
        return losses.sum(), (tokens, metrics | {"loss": (losses.sum(), tokens)}, new_state)

    def evaluate(self, params: PyTree, model_state: PyTree, batch: dict) -> Metrics:
        """Returns loss (unsmoothed) and accuracy sums over a batch's target tokens, in evaluation mode."""
        _, metrics = self._losses(self.logits(params, model_state, batch), batch)
        metrics["loss"] = metrics.pop("nll")
        return metrics

    def generate(
        self,
        params: PyTree,
        model_state: PyTree,
        batch: dict,
        options: decoding.Options,
        max_lengths=None,
        prefix=None,
    ) -> decoding.Hypotheses:
        """Returns outputs (B, n_best) for what the model reads of a batch, by greedy or beam search.

        max_lengths and prefix are those of `decoding.greedy`. Cross-attention's keys and values, which all hypotheses
        of a source share, stay out of what the search reorders.
        """
        variables = {"params": params, **model_state}
        cache = self.model.apply(variables, **self._inputs(batch), length=options.max_length, method="start_cache")
        memory = decoding.expand(cache["memory"], options.beam_size)

        def step(state, token, position):
            now = {"memory": memory, "state": state}
            logits, after = self.model.apply(variables, now, token, position, method="step")
            return logits, after["state"]

        search = decoding.greedy if options.beam_size == 1 else decoding.beam_search
        return search(step, cache["state"], options, max_lengths=max_lengths, prefix=prefix)

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
        """Returns the smoothed losses (B, T), and the sums of unsmoothed ones and of right tokens."""
        labels = next_tokens(batch)
        losses, nll = token_losses(logits, labels, smoothing=self.label_smoothing, form=self.smoothing_form, pad=PAD)
        real = (labels != PAD).astype(jnp.float32)
        # Not by argmax, which XLA does not vectorise on a CPU.
        right = (jnp.take_along_axis(logits, labels[..., None], -1)[..., 0] >= logits.max(-1)) * real
        return losses, {"nll": (nll.sum(), real.sum()), "accuracy": (right.sum(), real.sum())}


def next_tokens(batch: dict) -> jax.Array:
    """Returns what the decoder is to predict, (B, T) int32; pad where there is nothing to predict.

    In a packed row the token after a pair's last one is the next pair's bos, which nothing in the pair foretells.
    """
    labels = batch["target"][:, 1:]
    if "target_segments" not in batch:
        return labels
    segments = batch["target_segments"]
    return jnp.where(segments[:, 1:] == segments[:, :-1], labels, PAD)
