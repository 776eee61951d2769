"""Batches of sentence pairs, with a budget of tokens: bucketed or packed for training, bucketed for evaluation.

The batches of an epoch are a pure function of (seed, epoch), the iterator's state is the epoch and the batch in it, and
any number of processes loads the same global batches.
"""

import functools
import logging
from collections.abc import Callable, Iterable, Sequence

import grain
import numpy as np

from attnjax.data.shard import UNSHARDED, Shard
from attnjax.data.text.batching import Batching, PlannedBatch, bucketed, eval_plan, train_plan
from attnjax.data.text.corpus import Corpus, Pairs, Sentences
from attnjax.data.text.vocabulary import PAD

Batch = dict[str, np.ndarray]
# From the pairs of a global batch's rows (-1: an empty row), this process's rows and a generator to further arrays.
Attach = Callable[[np.ndarray, slice, np.random.Generator], Batch]

PREFETCH = 64  # batches; also hides the planning of the next epoch
_ATTACH = 2  # separates the random stream of `attach` from those in `batching` and `corpus`


def train_iterator(
    corpus: Corpus,
    batching: Batching,
    *,
    seed: int,
    shard: Shard = UNSHARDED,
    attach: Attach | None = None,
    prefetch: int = PREFETCH,
) -> grain.DatasetIterator:
    """Returns an endless iterator over this process's rows of shuffled batches.

    With B rows per process and a batch of width W: `source` `(B, W)` int32, ending in eos; `target` `(B, W + 1)` int32,
    from bos to eos, which the objective shifts by one; both padded with pad; `mask` `(B,)` bool, False for empty rows.
    Packing adds `source_segments`, `source_positions` `(B, W)`, `target_segments`, `target_positions` `(B, W + 1)`
    int32: segments number a row's pairs from 1, 0 being padding, and positions count from 0 within each pair. The
    token after a pair's eos is the next pair's bos, which is not a prediction to learn.

    `attach` adds further arrays that belong to the pairs of a batch, such as images.

    An epoch contains every pair once, in batches drawn by (seed, epoch). The iterator has `get_state` and `set_state`
    and works with `grain.checkpoint.CheckpointSave`; a resumed iterator returns the same bits. `close()` stops its
    thread. UserError if every pair is too long, or the rows cannot be shared equally by the processes.
    """
    shard.rows(batching.row_multiple, "row_multiple")
    first = corpus(0)
    if dropped := batching.count_dropped(first):
        logging.warning("left out %d of %d pairs, longer than max_length %d", dropped, len(first), batching.max_length)
    plan = train_plan(corpus, batching, seed)

    def epoch_batches(epoch: int) -> Sequence[Callable[[], Batch]]:
        pairs, batches = plan(epoch)

        def load(place: int) -> Batch:
            planned = batches[place]
            batch = _arrays(pairs, planned.part(shard))
            if attach is None:
                return batch
            rng = np.random.default_rng((seed, _ATTACH, epoch, place))
            return batch | attach(planned.index(), shard.rows(planned.rows), rng)

        return [functools.partial(load, place) for place in range(len(batches))]

    dataset = grain.experimental.ThreadPrefetchIterDataset(_Epochs(epoch_batches), prefetch_buffer_size=prefetch)
    return iter(dataset)


def eval_batches(
    pairs: Pairs, *, max_tokens: int = 4096, shapes: int = 8, row_multiple: int = 8, shard: Shard = UNSHARDED
) -> Iterable[Batch]:
    """Returns a re-iterable over this process's rows of every pair once, in ascending order of length.

    Batches are like those of bucketing in `train_iterator`, with `index` `(B,)` int32: the pair's place in `pairs`, -1
    for an empty row. No pair is too long: those beyond the budget get batches of `row_multiple` rows. UserError if the
    rows cannot be shared equally by the processes.
    """
    shard.rows(row_multiple, "row_multiple")
    batches = eval_plan(pairs, max_tokens, shapes, row_multiple)

    def batch(step: int) -> Batch:
        planned = batches[step].part(shard)
        return _arrays(pairs, planned) | {"index": planned.index()}

    dataset = grain.MapDataset.range(len(batches)).map(batch)
    return dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=PREFETCH))


def source_batches(
    sentences: Sequence[Sequence[int]], *, max_tokens: int = 4096, max_length: int = 1024, row_multiple: int = 8
) -> Iterable[Batch]:
    """Yields batches to decode, in ascending order of length: `source` and `index` as in `eval_batches`.

    Unlike there, shapes do not depend on the sentences, so that few compiled functions serve any text. Widths are 16,
    32, 64, ... up to `max_length`, which no sentence may exceed; rows are `row_multiple` times a power of two.
    """
    widths = [16]
    while widths[-1] < max_length:
        widths.append(2 * widths[-1])
    widths[-1] = max_length
    sides = Sentences.of(sentences)

    def rows(width: int) -> int:
        full = max(1, max_tokens // width // row_multiple)
        needed = -(-len(sentences) // row_multiple)
        return row_multiple * min(1 << (full.bit_length() - 1), 1 << (needed - 1).bit_length())

    lengths = sides.lengths
    for batch in bucketed(lengths, np.argsort(lengths, kind="stable"), widths, rows):
        yield {"source": _place(sides, batch, batch.width)[0], "index": batch.index()}


class _Epochs(grain.IterDataset):
    """Endless batches, epoch by epoch; `epoch_batches(epoch)` returns functions that load an epoch's batches."""

    def __init__(self, epoch_batches: Callable[[int], Sequence[Callable[[], Batch]]]):
        super().__init__()
        self._epoch_batches = functools.lru_cache(maxsize=1)(epoch_batches)

    def __iter__(self) -> "_EpochsIterator":
        return _EpochsIterator(self._epoch_batches)


class _EpochsIterator(grain.DatasetIterator):
    def __init__(self, epoch_batches: Callable[[int], Sequence[Callable[[], Batch]]]):
        super().__init__()
        self._epoch_batches = epoch_batches
        self._epoch, self._batch = 0, 0

    def __next__(self) -> Batch:
        batches = self._epoch_batches(self._epoch)
        loaded = batches[self._batch]()
        self._batch += 1
        if self._batch == len(batches):
            self._epoch, self._batch = self._epoch + 1, 0
        return loaded

    def get_state(self) -> dict[str, int]:
        return {"epoch": self._epoch, "batch": self._batch}

    def set_state(self, state: dict[str, int]) -> None:
        self._epoch, self._batch = state["epoch"], state["batch"]


def _arrays(pairs: Pairs, planned: PlannedBatch) -> Batch:
    batch = {"mask": np.isin(np.arange(planned.rows), planned.row)}
    width = planned.width
    for side, sentences, columns in (("source", pairs.source, width), ("target", pairs.target, width + 1)):
        tokens, segments, positions = _place(sentences, planned, columns)
        batch[side] = tokens
        if planned.packed:
            batch |= {f"{side}_segments": segments, f"{side}_positions": positions}
    return batch


def _place(sentences: Sentences, planned: PlannedBatch, width: int) -> np.ndarray:
    """Returns tokens, segments and positions, int32 `(3, rows, width)`; the sentences of a row are concatenated."""
    lengths = sentences.lengths[planned.members]
    ends = np.cumsum(lengths)
    first = np.searchsorted(planned.row, planned.row)  # the first member in the same row
    starts = ends - lengths
    columns = starts - starts[first]
    segments = np.arange(len(first)) - first + 1

    position = np.arange(ends[-1] if len(ends) else 0) - np.repeat(starts, lengths)
    where = np.repeat(planned.row, lengths), np.repeat(columns, lengths) + position
    placed = np.zeros((3, planned.rows, width), np.int32)
    placed[0] = PAD
    placed[0][where] = sentences.tokens[np.repeat(sentences.starts[planned.members], lengths) + position]
    placed[1][where] = np.repeat(segments, lengths)
    placed[2][where] = position
    return placed
