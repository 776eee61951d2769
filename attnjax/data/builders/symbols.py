"""Sequences of symbols to copy or to reverse: what a translator can do with them is what it remembers of them."""

from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds

SYMBOLS = 50  # the words "0" to "49"
SHORTEST, LONGEST = 2, 40  # there are too few of one symbol for three splits
SIZES = {"train": 60_000, "validation": 1_000, "test": 2_000}
SPLIT_SEED = 0


class Symbols(tfds.core.GeneratorBasedBuilder):
    """63,000 distinct sequences of 2 to 40 symbols with blanks between: "12 3 45", to be copied or to be reversed.

    A config is the task, `copy` where none is named. Both have the same sequences: 60,000 to train, 1,000 to
    validate and 2,000 to test, which no other split holds. Each length is as frequent as the others, and each of the
    50 symbols is drawn independently, so that nothing of a sequence can be guessed from the rest. JoeyNMT's
    reverse task (Kreutzer et al. 2019), whose sequences have up to 25 symbols, is the model.
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: ClassVar = [
        tfds.core.BuilderConfig(name="copy", description="The output is the input."),
        tfds.core.BuilderConfig(name="reverse", description="The output is the input from its end to its beginning."),
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        languages = ("input", "output")
        # `dataset_info_from_configs` would look for the metadata files of TFDS's own package layout.
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.Translation(languages),
            supervised_keys=languages,
            homepage="https://joeynmt.readthedocs.io",
        )

    def _split_generators(self, dl_manager):
        del dl_manager  # the sequences are drawn
        return {split: self._generate_examples(sequences) for split, sequences in split_sequences().items()}

    def _generate_examples(self, sequences):
        step = {"copy": 1, "reverse": -1}[self.builder_config.name]
        for number, sequence in enumerate(sequences):
            yield number, {"input": " ".join(map(str, sequence)), "output": " ".join(map(str, sequence[::step]))}


def split_sequences() -> dict[str, list[tuple[int, ...]]]:
    """Returns the sequences of each split, the same for both tasks; lengths go round, so that a slice has all too."""
    random = np.random.RandomState(SPLIT_SEED)  # its streams are frozen for good, unlike default_rng's
    drawn = {}  # in the order of drawing; one that is there already leaves the length as it is, for the next to have
    while len(drawn) < sum(SIZES.values()):
        length = SHORTEST + len(drawn) % (LONGEST - SHORTEST + 1)
        drawn[tuple(random.randint(SYMBOLS, size=length).tolist())] = None
    sequences = iter(drawn)
    return {split: [next(sequences) for _ in range(size)] for split, size in SIZES.items()}
