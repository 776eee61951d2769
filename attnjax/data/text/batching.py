"""Which sentence pairs share a batch: bucketing by length, or packing, within a budget of tokens."""

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from attnjax.data.shard import Shard
from attnjax.data.text.corpus import Corpus, Pairs
from attnjax.errors import UserError, nearest

METHODS = ("bucket", "pack")
OPEN_ROWS = 256
_SHUFFLE = 0  # separates the random stream of shuffling from those in `corpus` and `pipeline`


@dataclass(frozen=True)
class Batching:
    """How pairs are grouped into training batches; UserError if the method is unknown or a value is out of range.

    "bucket": pairs of similar length L (`Pairs.lengths`) share a batch of width W >= L with `max_tokens` // W rows,
    rounded down to a multiple of `row_multiple`. There are at most `shapes` widths: `max_length`, and those that
    minimise padding. A bucket's leftover pairs move to the next longer bucket, so that an epoch has at most one partial
    batch, padded with empty rows.

    "pack": several pairs share a row of width `max_length`. Each goes to the first of the last `OPEN_ROWS` opened rows
    in which both sides fit. All batches have one shape.

    Pairs longer than `max_length` are left out; their number is logged (with subword sampling: in the first epoch).
    `row_multiple` should be a multiple of the number of devices. A batch has at most `max_tokens` positions per side,
    not counting the target's bos.
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
        if self.max_tokens < (least := self.row_multiple * self.max_length):
            rows = f"{self.row_multiple} rows of max_length {self.max_length}"
            raise UserError(f"max_tokens is {self.max_tokens}: it should be {least} or more, to hold {rows}")

    def rows(self, width: int) -> int:
        """Returns the number of rows of a batch of this width."""
        return _row_count(width, self.max_tokens, self.row_multiple)

    def count_dropped(self, pairs: Pairs) -> int:
        """Returns the number of pairs longer than `max_length`."""
        return int((pairs.lengths > self.max_length).sum())


@dataclass(frozen=True)
class PlannedBatch:
    """A batch of `rows` rows with the pairs `members`, each in its `row`, ascending; if `packed`, several per row."""

    rows: int
    width: int
    members: np.ndarray
    row: np.ndarray
    packed: bool = False

    def part(self, shard: Shard) -> "PlannedBatch":
        """Returns the rows of one process."""
        rows = shard.rows(self.rows, "the number of rows")
        start, stop = np.searchsorted(self.row, [rows.start, rows.stop])
        row = self.row[start:stop] - rows.start
        return PlannedBatch(rows.stop - rows.start, self.width, self.members[start:stop], row, self.packed)

    def index(self) -> np.ndarray:
        """Returns the pair of each row, int32 `(rows,)`, -1 if the row is empty."""
        index = np.full(self.rows, -1, np.int32)
        index[self.row] = self.members
        return index


@dataclass(frozen=True)
class Layout:
    """Statistics of an epoch: `shapes` counts batches by (rows, source width, target width).

    `padding` is the share of pad among the ids of both sides, `pairs` the number of pairs in batches, `dropped` the
    number of those longer than max_length.
    """

    shapes: dict[tuple[int, int, int], int]
    padding: float
    pairs: int
    dropped: int

    @property
    def batches(self) -> int:
        return sum(self.shapes.values())


def train_layout(corpus: Corpus, batching: Batching, *, seed: int) -> Layout:
    """Returns the layout of the first epoch; with bucketing and no subword sampling, of every epoch.

    Otherwise the number of batches varies slightly between epochs; their shapes are among `possible_shapes`.
    """
    pairs, batches = train_plan(corpus, batching, seed)(0)
    shapes = Counter((batch.rows, batch.width, batch.width + 1) for batch in batches)
    members = np.concatenate([batch.members for batch in batches])
    filled = (pairs.source.lengths + pairs.target.lengths)[members].sum()
    ids = sum(rows * (source + target) * count for (rows, source, target), count in shapes.items())
    by_width = dict(sorted(shapes.items(), key=lambda item: item[0][1]))
    return Layout(by_width, float(1 - filled / ids), len(members), batching.count_dropped(pairs))


def possible_shapes(corpus: Corpus, batching: Batching) -> list[tuple[int, int, int]]:
    """Returns every (rows, source width, target width) that a global training batch can have, by ascending width."""
    widths = [batching.max_length] if batching.method == "pack" else _train_widths(corpus(0), batching)
    return [(batching.rows(width), width, width + 1) for width in widths]


def train_plan(corpus: Corpus, batching: Batching, seed: int) -> Callable[[int], tuple[Pairs, list[PlannedBatch]]]:
    """Returns a function from an epoch to its pairs and shuffled global batches."""
    if seed < 0:
        raise UserError(f"seed is {seed}: it should be 0 or more")
    widths = _train_widths(corpus(0), batching)

    def plan(epoch: int) -> tuple[Pairs, list[PlannedBatch]]:
        pairs = corpus(epoch)
        rng = np.random.default_rng((seed, _SHUFFLE, epoch))
        order = rng.permutation(np.flatnonzero(pairs.lengths <= batching.max_length))
        if batching.method == "pack":
            return pairs, _packed(pairs, order, batching, rng)
        batches = bucketed(pairs.lengths, order, widths, batching.rows)
        return pairs, [batches[place] for place in rng.permutation(len(batches))]

    return plan


def eval_plan(pairs: Pairs, max_tokens: int, shapes: int, row_multiple: int) -> list[PlannedBatch]:
    """Returns global batches of every pair once, in ascending order of length."""
    if max_tokens < 1 or shapes < 1:
        raise UserError(f"max_tokens is {max_tokens} and shapes is {shapes}: both should be 1 or more")
    lengths = pairs.lengths
    order, widths = np.argsort(lengths, kind="stable"), _best_widths(lengths, shapes)
    return bucketed(lengths, order, widths, lambda width: _row_count(width, max_tokens, row_multiple))


def _row_count(width: int, max_tokens: int, row_multiple: int) -> int:
    return max(1, max_tokens // width // row_multiple) * row_multiple


def bucketed(
    lengths: np.ndarray, order: np.ndarray, widths: Sequence[int], rows: Callable[[int], int]
) -> list[PlannedBatch]:
    """Batches the pairs in buckets of `widths`, each in the given order; only the last batch may have empty rows.

    `rows(width)` is the number of rows of a batch.
    """
    buckets = np.searchsorted(widths, lengths[order])
    batches, carried, occupied = [], order[:0], np.unique(buckets)
    for bucket in occupied:
        width, members = widths[bucket], np.concatenate([carried, order[buckets == bucket]])
        count = rows(width)
        full = len(members) if bucket == occupied[-1] else len(members) // count * count
        for start in range(0, full, count):
            part = members[start : start + count]
            batches.append(PlannedBatch(count, width, part, np.arange(len(part))))
        carried = members[full:]
    return batches


def _train_widths(pairs: Pairs, batching: Batching) -> list[int]:
    lengths = pairs.lengths[pairs.lengths <= batching.max_length]
    if not len(lengths):
        longer = f"longer than max_length {batching.max_length}, the shortest has {pairs.lengths.min()} tokens"
        raise UserError(f"all of the {len(pairs)} pairs are {longer}")
    # max_length too, as subwords sampled in other epochs may exceed all of these lengths.
    widths = _best_widths(lengths, batching.shapes - 1) if batching.shapes > 1 else []
    return sorted({*widths, batching.max_length})


def _best_widths(lengths: np.ndarray, count: int) -> list[int]:
    """Returns at most `count` widths that minimise padding when each length is rounded up to the next of them.

    Dynamic programming over the distinct lengths: cost[j] is the least number of positions for the j shortest.
    """
    values, counts = np.unique(lengths, return_counts=True)
    below = np.concatenate([[0], np.cumsum(counts)])
    # positions[i, j]: those of a bucket of the values i..j, as wide as the last of them
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


def _packed(pairs: Pairs, order: np.ndarray, batching: Batching, rng: np.random.Generator) -> list[PlannedBatch]:
    row = _first_fit(pairs.source.lengths[order], pairs.target.lengths[order], batching.max_length)
    row = rng.permutation(row.max() + 1)[row]  # the rows opened last are the emptiest
    by_row = np.argsort(row, kind="stable")
    members, row, count = order[by_row], row[by_row], batching.rows(batching.max_length)
    bounds = np.searchsorted(row, np.arange(0, row[-1] + 1 + count, count))
    return [
        PlannedBatch(count, batching.max_length, members[start:stop], row[start:stop] - place * count, packed=True)
        for place, (start, stop) in enumerate(itertools.pairwise(bounds))
    ]


def _first_fit(source: np.ndarray, target: np.ndarray, width: int) -> np.ndarray:
    """Returns the row of each pair: the first of the last `OPEN_ROWS` in which both sides fit, or a new one.

    `source` and `target` are the lengths of the sides; rows have `width` columns for source and one more for target.
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
