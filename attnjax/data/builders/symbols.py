"""Sequences of symbols to copy or to reverse: tests how much of its input a sequence model remembers."""

from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds

from attnjax.data.builders import dataset_info

SYMBOLS = 50  # the words "0" to "49"
SHORTEST, LONGEST = 2, 40  # there are too few sequences of length 1 for three disjoint splits
SIZES = {"train": 60_000, "validation": 1_000, "test": 2_000}
SPLIT_SEED = 0


class Symbols(tfds.core.GeneratorBasedBuilder):
    """63,000 distinct sequences of 2 to 40 symbols separated by blanks, like "12 3 45", to copy or to reverse.

    A config is the task, by default `copy`. Both have the same disjoint splits: 60,000 sequences for training, 1,000
    for validation and 2,000 for testing. All lengths are equally frequent, and the 50 symbols are drawn independently,
    so that no part of a sequence can be guessed from the rest. Modelled on JoeyNMT's reverse task (Kreutzer et al.
    2019), whose sequences have up to 25 symbols.
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: ClassVar = [
        tfds.core.BuilderConfig(name="copy", description="The output is the input."),
        tfds.core.BuilderConfig(name="reverse", description="The output is the input in reverse."),
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        languages = ("input", "output")
        return dataset_info(self, tfds.features.Translation(languages), languages, "https://joeynmt.readthedocs.io")

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(sequences) for split, sequences in split_sequences().items()}

    def _generate_examples(self, sequences):
        step = {"copy": 1, "reverse": -1}[self.builder_config.name]
        for number, sequence in enumerate(sequences):
            yield number, {"input": " ".join(map(str, sequence)), "output": " ".join(map(str, sequence[::step]))}


def split_sequences() -> dict[str, list[tuple[int, ...]]]:
    """Returns the sequences of each split, the same for both tasks; lengths alternate, so every slice has all."""
    random = np.random.RandomState(SPLIT_SEED)  # NumPy guarantees its streams forever, unlike those of default_rng
    drawn: dict[tuple[int, ...], None] = {}  # in insertion order; after a duplicate the same length is drawn again
    while len(drawn) < sum(SIZES.values()):
        length = SHORTEST + len(drawn) % (LONGEST - SHORTEST + 1)
        drawn[tuple(random.randint(SYMBOLS, size=length).tolist())] = None
    sequences = iter(drawn)
    return {split: [next(sequences) for _ in range(size)] for split, size in SIZES.items()}
