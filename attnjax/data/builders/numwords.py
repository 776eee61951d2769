"""Numbers spelled out in two languages by num2words: unlimited exact translations with a small vocabulary."""

from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds

from attnjax.data.builders import dataset_info
from attnjax.errors import import_extra

LARGEST = 999_999
ALWAYS_TRAINED = 100  # numbers below this are in the training split, as the others are composed of them
SIZES = {"train": 20_000, "validation": 1_000, "test": 1_000}
SPLIT_SEED = 0
PAIRS = (("en", "de"), ("en", "fr"), ("en", "nl"), ("en", "da"), ("de", "fr"))


class Numwords(tfds.core.GeneratorBasedBuilder):
    """22,000 distinct numbers from 0 to 999,999, spelled out in two languages: "twenty-one", "einundzwanzig".

    A config is a pair of languages, by default `en_de`. All have the same disjoint splits: 20,000 numbers for
    training, including all below 100, 1,000 for validation and 1,000 for testing. In German, Dutch and Danish the ones
    precede the tens; in French, 70 to 99 are counted in scores.
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: ClassVar = [
        tfds.core.BuilderConfig(name="_".join(pair), description=f"Languages {pair[0]} and {pair[1]}.")
        for pair in PAIRS
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        languages = self._languages()
        features = tfds.features.Translation(languages)
        return dataset_info(self, features, languages, "https://github.com/savoirfairelinux/num2words")

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(numbers) for split, numbers in split_numbers().items()}

    def _generate_examples(self, numbers):
        num2words = import_extra("num2words", "translation").num2words
        for number in numbers.tolist():
            yield number, {language: num2words(number, lang=language) for language in self._languages()}

    def _languages(self) -> tuple[str, ...]:
        return tuple(self.builder_config.name.split("_"))


def split_numbers() -> dict[str, np.ndarray]:
    """Returns the numbers of each split, int64, the same for all language pairs."""
    # NumPy guarantees the streams of RandomState forever, unlike those of default_rng.
    drawn = np.random.RandomState(SPLIT_SEED).permutation(np.arange(ALWAYS_TRAINED, LARGEST + 1))
    numbers = np.concatenate([np.arange(ALWAYS_TRAINED), drawn])
    stops = np.cumsum(list(SIZES.values()))
    return dict(zip(SIZES, np.split(numbers[: stops[-1]], stops[:-1]), strict=True))
