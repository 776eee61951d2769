from collections import Counter

import numpy as np
import pytest

from attnjax.data.builders import symbols
from attnjax.data.text import vocabulary as text
from attnjax.data.text.sources import open_pairs


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """A few hundred sequences, because writing all of them takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(symbols, "SIZES", {"train": 390, "validation": 39, "test": 78})
        folder = tmp_path_factory.mktemp("tfds")
        for config in symbols.Symbols.builder_configs:
            open_symbols(config, "train", str(folder))
        yield str(folder)


def open_symbols(config, split, data_dir):
    return open_pairs(f"tfds:symbols/{config}", split, source="input", target="output", data_dir=data_dir)


def test_splits_are_disjoint_and_lengths_and_symbols_uniform():
    splits = symbols.split_sequences()
    assert {name: len(sequences) for name, sequences in splits.items()} == symbols.SIZES
    everything = [sequence for sequences in splits.values() for sequence in sequences]
    assert len(set(everything)) == len(everything)
    for name, sequences in splits.items():
        lengths = Counter(map(len, sequences))
        assert sorted(lengths) == list(range(2, 41)), name
        assert max(lengths.values()) - min(lengths.values()) <= 1, name
    counts = np.bincount([symbol for sequence in everything for symbol in sequence])
    assert len(counts) == 50 and counts.min() > 0.98 * counts.mean() and counts.max() < 1.02 * counts.mean()


def test_the_sequences_never_change():
    assert symbols.split_sequences()["train"][:2] == [(44, 47), (0, 3, 3)]


def test_tasks(data_dir):
    copied, reversed_ = (open_symbols(config, "test", data_dir) for config in ("copy", "reverse"))
    assert copied.source == copied.target == reversed_.source
    assert [line.split()[::-1] for line in reversed_.source] == [line.split() for line in reversed_.target]
    assert any(line.split() != line.split()[::-1] for line in reversed_.source)
    default = open_pairs("tfds:symbols", "test", source="input", target="output", data_dir=data_dir)
    assert default.target == copied.target


def test_a_vocabulary_of_65_has_a_subword_for_each_symbol(data_dir):
    pairs = open_symbols("reverse", "train", data_dir)
    vocabulary = text.train_vocabulary(pairs.source, pairs.target, size=65)
    ids = text.encode(vocabulary.source, pairs.source)
    assert [len(row) for row in ids] == [len(line.split()) for line in pairs.source]
    assert len({token for row in ids for token in row}) == 50
    assert text.decode(vocabulary.target, ids) == pairs.source
