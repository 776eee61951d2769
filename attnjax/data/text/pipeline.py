"""Batches of sentence pairs by a budget of tokens: bucketed by length or packed for training, bucketed for evaluation.

The tokens of all pairs are kept in flat arrays, so that a batch costs NumPy a gather. What an epoch holds is a pure
function of (seed, epoch), and the iterator's state is the epoch and the batch in it; any number of processes shares
the same global batches.
"""

import functools
import itertools
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import grain
import numpy as np

from attnjax.data.text.sources import PairSource
from attnjax.data.text.vocabulary import BOS, EOS, PAD, Sampling, Vocabulary, encode
from attnjax.errors import UserError, nearest

Batch = dict[str, np.ndarray]

METHODS = ("bucket", "pack")
PREFETCH = 64  # also bridges the making of an epoch's batches
OPEN_ROWS = 256

# Keep the random streams of shuffling, of subword sampling and of what is attached apart.
_SHUFFLE, _SAMPLE, _ATTACH = 0, 1, 2


@dataclass(frozen=True)
class Sentences:
    """The ids of many sentences, one after another: sentence i is `tokens[starts[i] : starts[i + 1]]`, int32."""

    tokens: np.ndarray
    starts: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.starts)


@dataclass(frozen=True)
class Pairs:
    """Encoded sentence pairs: the source ends in eos, the target begins with bos and ends in eos."""

    source: Sentences
    target: Sentences

    def __len__(self) -> int:
        return len(self.source.starts) - 1

    @property
    def lengths(self) -> np.ndarray:
        """The positions that a model needs for each pair, int64: the longer side's subwords and one more."""
        return np.maximum(self.source.lengths, self.target.lengths - 1)


# What else is in a batch, from the pairs of its rows (B of all processes; -1: empty), this process's rows, a generator.
Attach = Callable[[np.ndarray, slice, np.random.Generator], Batch]

# The pairs of an epoch: always the same ones, or their subwords drawn anew.
Corpus = Callable[[int], Pairs]


@dataclass(frozen=True)
class Batching:
    """How pairs make training batches.

    "bucket": pairs of like length L = `Pairs.lengths` share a batch of width W >= L, one of at most `shapes` widths,
    with `max_tokens` // W rows rounded down to a multiple of `row_multiple`. The widths are those that pad the data
    least, and `max_length`. What is left over in a bucket goes to the next longer one, so that an epoch ends in one
    partial batch at most, filled up with empty rows.

    "pack": several pairs share a row of width `max_length`, each the first row with room for both sides among the
    last 256 opened; all batches have one shape.

    Pairs longer than `max_length` are left out; the log says how many (with subword sampling: in the first epoch).
    `row_multiple` should be a multiple of the number of devices. A batch has at most `max_tokens` positions a side
    (target without bos).
    """

    method: str = "bucket"
    max_tokens: int = 4096
    max_length: int = 128
    shapes: int = 8
    row_multiple: int = 8

    def __post_init__(self):
        if self.method not in METHODS:
            raise UserError(f"unknown batching method '{self.method}': {nearest(self.method, METHODS)}")
        for name in ("max_length", "shapes", "row_multiple"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}: it should be 1 or more")
        if self.max_tokens < self.row_multiple * self.max_length:
            raise UserError(
                f"max_tokens is {self.max_tokens}: it should be {self.row_multiple * self.max_length} or more, to hold "
                f"{self.row_multiple} rows of max_length {self.max_length}"
            )

    def rows(self, width: int) -> int:
        """Returns the rows of a batch of this width."""
        return _rows(width, self.max_tokens, self.row_multiple)


@dataclass(frozen=True)
class Layout:
    """An epoch of batches in numbers: `shapes` counts the batches by (rows, source width, target width).

    `padding` is the share of pad among all ids of both sides, so that 1 - padding is the fill rate; `pairs` are in
    the batches, `dropped` are longer than max_length.
    """

    shapes: dict[tuple[int, int, int], int]
    padding: float
    pairs: int
    dropped: int

    @property
    def batches(self) -> int:
        return sum(self.shapes.values())


def encode_pairs(source: PairSource, vocabulary: Vocabulary) -> Pairs:
    """Encodes all pairs once."""
    return _pairs(encode(vocabulary.source, source.source), encode(vocabulary.target, source.target))


def sampled_corpus(source: PairSource, vocabulary: Vocabulary, sampling: Sampling, seed: int) -> Corpus:
    """Returns the pairs of each epoch with their subwords drawn anew by (seed, epoch); the last epoch is kept.

    Drawn for all sentences at once and in order, so that what a sentence becomes does not depend on its batch.
    """

    @functools.lru_cache(maxsize=1)
    def corpus(epoch: int) -> Pairs:
        stream = (seed, _SAMPLE, epoch)
        return _pairs(
            encode(vocabulary.source, source.source, sampling, (*stream, 0)),
            encode(vocabulary.target, source.target, sampling, (*stream, 1)),
        )

    return corpus


def training_corpus(source: PairSource, vocabulary: Vocabulary, sampling: Sampling, seed: int) -> Corpus:
    """Returns the pairs of each epoch: encoded once, or drawn anew where `sampling` is on."""
    if sampling:
        return sampled_corpus(source, vocabulary, sampling, seed)
    pairs = encode_pairs(source, vocabulary)
    return lambda epoch: pairs


def train_iterator(
    corpus: Corpus,
    *,
    batching: Batching,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    attach: Attach | None = None,
    prefetch: int = PREFETCH,
) -> grain.DatasetIterator:
    """Makes an endless iterator over this process's rows of shuffled batches.

    With B the rows of this process and W the batch's width: `source` `(B, W)` int32, ending in eos; `target`
    `(B, W + 1)` int32, from bos to eos, which the task shifts once; both filled up with pad; `mask` `(B,)` bool, False
    where a row is empty. When packing also `source_segments`, `source_positions` `(B, W)`, `target_segments`,
    `target_positions` `(B, W + 1)` int32: a row's pairs are numbered from 1, 0 is padding, and positions count from 0
    in each pair. The next token of a pair's last one is another pair's bos: it is no prediction to learn.

    `attach` adds to each batch what else belongs to its pairs, such as images.

    An epoch holds every pair once, batched anew by (seed, epoch). The iterator has `get_state` and `set_state`, and
    goes into `grain.checkpoint.CheckpointSave`; resumed, it gives the same bits. `close()` ends its thread.

    Raises:
        UserError: no pair is short enough, or the processes cannot share the rows.
    """
    _check_processes(batching.row_multiple, process_index, process_count)
    if dropped := _count_dropped(corpus(0), batching):
        logging.warning(
            "left out %d of %d pairs, longer than max_length %d", dropped, len(corpus(0)), batching.max_length
        )
    plan = _train_plan(corpus, batching, seed)

    def epoch_batches(epoch: int) -> Sequence[Callable[[], Batch]]:
        pairs, batches = plan(epoch)

        def made(place: int) -> Batch:
            whole = batches[place]
            batch = _train_batch(pairs, whole.share(process_index, process_count))
            if attach is None:
                return batch
            count = whole.rows // process_count
            rows = slice(process_index * count, (process_index + 1) * count)
            return batch | attach(whole.index(), rows, np.random.default_rng((seed, _ATTACH, epoch, place)))

        return [functools.partial(made, place) for place in range(len(batches))]

    dataset = grain.experimental.ThreadPrefetchIterDataset(_Epochs(epoch_batches), prefetch_buffer_size=prefetch)
    return iter(dataset)


def train_layout(corpus: Corpus, *, batching: Batching, seed: int) -> Layout:
    """Returns the shapes, number and padding of the first epoch's batches; bucketing without sampling has them in all.

    When packing or sampling, the number of batches of other epochs differs a little; the shapes are among
    `possible_shapes`.
    """
    pairs, batches = _train_plan(corpus, batching, seed)(0)
    return _layout(pairs, batches, _count_dropped(pairs, batching))


def possible_shapes(corpus: Corpus, batching: Batching) -> list[tuple[int, int, int]]:
    """Returns every (rows, source width, target width) that a global training batch can have, narrow to wide."""
    widths = [batching.max_length] if batching.method == "pack" else _train_widths(corpus(0), batching)
    return [(batching.rows(width), width, width + 1) for width in widths]


def eval_batches(
    pairs: Pairs,
    *,
    max_tokens: int = 4096,
    shapes: int = 8,
    row_multiple: int = 8,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterable[Batch]:
    """Makes an iterable, which may be gone through again, over this process's rows of every pair once, short to long.

    Batches are as those of bucketing in `train_iterator`, with `index` `(B,)` int32 in addition: the pair's place in
    `pairs`, -1 for an empty row. No pair is too long: one beyond the budget gets `row_multiple` rows.

    Raises:
        UserError: the processes cannot share the rows.
    """
    _check_processes(row_multiple, process_index, process_count)
    batches = _eval_plan(pairs, max_tokens, shapes, row_multiple)

    def batch(step: int) -> Batch:
        rows = batches[step].share(process_index, process_count)
        return _batch(pairs, rows) | {"index": rows.index()}

    dataset = grain.MapDataset.range(len(batches)).map(batch)
    return dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=PREFETCH))


def source_batches(
    sentences: Sequence[Sequence[int]], *, max_tokens: int = 4096, max_length: int = 1024, row_multiple: int = 8
) -> Iterable[Batch]:
    """Makes batches to translate, short to long: `source` and `index` as in `eval_batches`, of few different shapes.

    Unlike there, the widths do not depend on the sentences, so that any text is read with the same compiled code: 16,
    32, 64, ... up to `max_length`, which no sentence may exceed. Rows too are powers of two times `row_multiple`.
    """
    widths = [16]
    while widths[-1] < max_length:
        widths.append(2 * widths[-1])
    widths[-1] = max_length
    sides = _sentences(sentences)

    def rows(width: int) -> int:
        full = max(1, max_tokens // width // row_multiple)
        needed = -(-len(sentences) // row_multiple)
        return row_multiple * min(1 << (full.bit_length() - 1), 1 << (needed - 1).bit_length())

    lengths = sides.lengths
    for batch in _bucketed(lengths, np.argsort(lengths, kind="stable"), widths, rows):
        yield {"source": _place(sides, batch, batch.width)[0], "index": batch.index()}


def eval_layout(pairs: Pairs, *, max_tokens: int = 4096, shapes: int = 8, row_multiple: int = 8) -> Layout:
    """Returns the shapes, number and padding of evaluation's batches."""
    return _layout(pairs, _eval_plan(pairs, max_tokens, shapes, row_multiple), dropped=0)


# Iterating with a state


class _Epochs(grain.IterDataset):
    """Endless batches, epoch after epoch; `epoch_batches(epoch)` returns the functions that make an epoch's."""

    def __init__(self, epoch_batches: Callable[[int], Sequence[Callable[[], Batch]]]):
        super().__init__()
        self._epoch_batches = functools.lru_cache(maxsize=1)(epoch_batches)

    def __iter__(self) -> "_EpochsIterator":
        return _EpochsIterator(self._epoch_batches)


class _EpochsIterator(grain.DatasetIterator):
    def __init__(self, epoch_batches):
        super().__init__()
        self._epoch_batches = epoch_batches
        self._epoch, self._batch = 0, 0

    def __next__(self) -> Batch:
        batches = self._epoch_batches(self._epoch)
        made = batches[self._batch]()
        self._batch += 1
        if self._batch == len(batches):
            self._epoch, self._batch = self._epoch + 1, 0
        return made

    def get_state(self) -> dict[str, int]:
        return {"epoch": self._epoch, "batch": self._batch}

    def set_state(self, state: dict[str, int]) -> None:
        self._epoch, self._batch = state["epoch"], state["batch"]


# Which pairs


@dataclass(frozen=True)
class _Rows:
    """The pairs of a batch of `rows` rows: the row of each, ascending, and whether a row holds several."""

    rows: int
    width: int
    members: np.ndarray
    row: np.ndarray
    packed: bool = False

    def share(self, process_index: int, process_count: int) -> "_Rows":
        count = self.rows // process_count
        start, stop = np.searchsorted(self.row, [process_index * count, (process_index + 1) * count])
        row = self.row[start:stop] - process_index * count
        return _Rows(count, self.width, self.members[start:stop], row, self.packed)

    def index(self) -> np.ndarray:
        index = np.full(self.rows, -1, np.int32)
        index[self.row] = self.members
        return index


def _train_plan(corpus: Corpus, batching: Batching, seed: int) -> Callable[[int], tuple[Pairs, list[_Rows]]]:
    """Returns the function from an epoch to its pairs and batches."""
    if seed < 0:
        raise UserError(f"seed is {seed}: it should be 0 or more")
    widths = _train_widths(corpus(0), batching)

    def plan(epoch: int) -> tuple[Pairs, list[_Rows]]:
        pairs = corpus(epoch)
        rng = np.random.default_rng((seed, _SHUFFLE, epoch))
        order = rng.permutation(np.flatnonzero(pairs.lengths <= batching.max_length))
        if batching.method == "pack":
            return pairs, _packed(pairs, order, batching, rng)
        batches = _bucketed(pairs.lengths, order, widths, batching.rows)
        return pairs, [batches[place] for place in rng.permutation(len(batches))]

    return plan


def _eval_plan(pairs: Pairs, max_tokens: int, shapes: int, row_multiple: int) -> list[_Rows]:
    if max_tokens < 1 or shapes < 1:
        raise UserError(f"max_tokens is {max_tokens} and shapes is {shapes}: both should be 1 or more")
    lengths = pairs.lengths
    rows = functools.partial(_rows, max_tokens=max_tokens, row_multiple=row_multiple)
    return _bucketed(lengths, np.argsort(lengths, kind="stable"), _best_widths(lengths, shapes), rows)


def _rows(width: int, max_tokens: int, row_multiple: int) -> int:
    return max(1, max_tokens // width // row_multiple) * row_multiple


def _train_widths(pairs: Pairs, batching: Batching) -> list[int]:
    lengths = pairs.lengths[pairs.lengths <= batching.max_length]
    if not len(lengths):
        raise UserError(
            f"all of the {len(pairs)} pairs are longer than max_length {batching.max_length}, "
            f"the shortest has {pairs.lengths.min()} tokens"
        )
    # max_length too, as other draws of the subwords may be longer than all of these.
    widths = _best_widths(lengths, batching.shapes - 1) if batching.shapes > 1 else []
    return sorted({*widths, batching.max_length})


def _best_widths(lengths: np.ndarray, count: int) -> list[int]:
    """Returns at most `count` widths with the least padding when each length is rounded up to the next of them.

    By dynamic programming over the distinct lengths: cost[j] is the least number of positions of the j shortest.
    """
    values, counts = np.unique(lengths, return_counts=True)
    below = np.concatenate([[0], np.cumsum(counts)])
    # positions[i, j] are those of a bucket that holds the values i to j - 1, and has the width of the last of them
    positions = (below[None, 1:] - below[:-1, None]) * values
    positions = np.where(np.tri(len(values), dtype=bool).T, positions, np.inf)
    cost, choices = positions[0], []
    for _ in range(min(count, len(values)) - 1):
        total = np.concatenate([[np.inf], cost[:-1]])[:, None] + positions
        choices.append(total.argmin(axis=0))
        cost = total.min(axis=0)
    ends = [len(values) - 1]
    for choice in reversed(choices):
        ends.append(int(choice[ends[-1]]) - 1)
    return [int(values[end]) for end in reversed(ends)]


def _bucketed(lengths: np.ndarray, order: np.ndarray, widths: Sequence[int], rows: Callable[[int], int]) -> list[_Rows]:
    """Batches the pairs, in the given order within each bucket; only the last batch may have empty rows."""
    buckets = np.searchsorted(widths, lengths[order])
    batches, carried = [], order[:0]
    occupied = np.unique(buckets)
    for bucket in occupied:
        width, members = widths[bucket], np.concatenate([carried, order[buckets == bucket]])
        count = rows(width)
        full = len(members) if bucket == occupied[-1] else len(members) // count * count
        batches += [
            _Rows(count, width, part, np.arange(len(part)))
            for part in (members[start : start + count] for start in range(0, full, count))
        ]
        carried = members[full:]
    return batches


def _packed(pairs: Pairs, order: np.ndarray, batching: Batching, rng: np.random.Generator) -> list[_Rows]:
    row = _first_fit(pairs.source.lengths[order], pairs.target.lengths[order], batching.max_length)
    row = rng.permutation(row.max() + 1)[row]  # the last rows opened are the emptiest
    by_row = np.argsort(row, kind="stable")
    members, row, count = order[by_row], row[by_row], batching.rows(batching.max_length)
    bounds = np.searchsorted(row, np.arange(0, row[-1] + 1 + count, count))
    return [
        _Rows(count, batching.max_length, members[start:stop], row[start:stop] - place * count, packed=True)
        for place, (start, stop) in enumerate(itertools.pairwise(bounds))
    ]


def _first_fit(source: np.ndarray, target: np.ndarray, width: int) -> np.ndarray:
    """Returns the row of each pair: the first of the last OPEN_ROWS opened with room for both sides, else a new one.

    `source` and `target` are the lengths of the sides; rows have `width` columns for source, one more for target.
    """
    room = np.repeat([[width], [width + 1]], len(source), axis=1)
    row, opened = np.zeros(len(source), int), 0
    for pair, need in enumerate(np.stack([source, target], axis=1)):
        start = max(0, opened - OPEN_ROWS)
        fits = (room[:, start : opened + 1] >= need[:, None]).all(axis=0)
        row[pair] = start + fits.argmax()
        room[:, row[pair]] -= need
        opened = max(opened, row[pair] + 1)
    return row


# What becomes of them


def _pairs(source: list[list[int]], target: list[list[int]]) -> Pairs:
    return Pairs(
        _sentences([*ids, EOS] for ids in source),
        _sentences([BOS, *ids, EOS] for ids in target),
    )


def _sentences(sentences: Iterable[list[int]]) -> Sentences:
    sentences = list(sentences)
    starts = np.concatenate([[0], np.cumsum([len(ids) for ids in sentences], dtype=np.int64)]).astype(np.int64)
    tokens = np.fromiter(itertools.chain.from_iterable(sentences), np.int32, count=starts[-1])
    return Sentences(tokens, starts)


def _train_batch(pairs: Pairs, rows: _Rows) -> Batch:
    return _packed_batch(pairs, rows) if rows.packed else _batch(pairs, rows)


def _batch(pairs: Pairs, rows: _Rows) -> Batch:
    return {
        "source": _place(pairs.source, rows, rows.width)[0],
        "target": _place(pairs.target, rows, rows.width + 1)[0],
        "mask": np.isin(np.arange(rows.rows), rows.row),
    }


def _packed_batch(pairs: Pairs, rows: _Rows) -> Batch:
    batch = {"mask": np.isin(np.arange(rows.rows), rows.row)}
    for side, sentences, width in (("source", pairs.source, rows.width), ("target", pairs.target, rows.width + 1)):
        placed = _place(sentences, rows, width)
        batch |= dict(zip((side, f"{side}_segments", f"{side}_positions"), placed, strict=True))
    return batch


def _place(sentences: Sentences, rows: _Rows, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns tokens, segments and positions (rows, width) int32, each row's sentences one after another."""
    lengths = sentences.lengths[rows.members]
    ends = np.cumsum(lengths)
    first = np.searchsorted(rows.row, rows.row)  # the first member in the same row
    starts = ends - lengths
    columns = starts - starts[first]
    segments = np.arange(len(first)) - first + 1

    position = np.arange(ends[-1] if len(ends) else 0) - np.repeat(starts, lengths)
    where = np.repeat(rows.row, lengths), np.repeat(columns, lengths) + position
    placed = np.zeros((3, rows.rows, width), np.int32)
    placed[0] = PAD
    placed[0][where] = sentences.tokens[np.repeat(sentences.starts[rows.members], lengths) + position]
    placed[1][where] = np.repeat(segments, lengths)
    placed[2][where] = position
    return tuple(placed)


# Numbers and arguments


def _layout(pairs: Pairs, batches: list[_Rows], dropped: int) -> Layout:
    shapes = Counter((batch.rows, batch.width, batch.width + 1) for batch in batches)
    members = np.concatenate([batch.members for batch in batches])
    filled = (pairs.source.lengths + pairs.target.lengths)[members].sum()
    ids = sum(rows * (source + target) * count for (rows, source, target), count in shapes.items())
    shapes = dict(sorted(shapes.items(), key=lambda item: item[0][1]))
    return Layout(shapes, float(1 - filled / ids), len(members), dropped)


def _count_dropped(pairs: Pairs, batching: Batching) -> int:
    return int((pairs.lengths > batching.max_length).sum())


def _check_processes(row_multiple: int, process_index: int, process_count: int) -> None:
    if row_multiple % process_count or not 0 <= process_index < process_count:
        raise UserError(f"row_multiple is {row_multiple}: it should be a multiple of the {process_count} process(es)")
