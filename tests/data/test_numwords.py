import numpy as np
import pytest

from attnjax.data.builders.numwords import split_numbers
from attnjax.data.text.sources import open_pairs
from attnjax.errors import UserError


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """A few hundred numbers, because num2words takes seconds for all of them."""
    from attnjax.data.builders import numwords

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(numwords, "SIZES", {"train": 300, "validation": 40, "test": 60})
        folder = tmp_path_factory.mktemp("tfds")
        for config, languages in (("numwords", ("en", "de")), ("numwords/en_nl", ("en", "nl"))):
            open_pairs(f"tfds:{config}", "train", source=languages[0], target=languages[1], data_dir=str(folder))
        yield str(folder)


def test_splits_are_disjoint_and_train_has_all_below_100():
    splits = split_numbers()
    assert {name: len(numbers) for name, numbers in splits.items()} == {
        "train": 20_000,
        "validation": 1_000,
        "test": 1_000,
    }
    everything = np.concatenate(list(splits.values()))
    assert len(np.unique(everything)) == len(everything)
    assert everything.min() == 0 and 990_000 < everything.max() <= 999_999
    assert set(range(100)) <= set(splits["train"].tolist())
    assert splits["test"][:3].tolist() == split_numbers()["test"][:3].tolist()


def test_translations(data_dir):
    pairs = open_pairs("tfds:numwords", "train", source="en", target="de", data_dir=data_dir)
    german = dict(zip(pairs.source, pairs.target, strict=True))
    assert len(german) == 300
    assert german["twenty-one"] == "einundzwanzig"
    assert german["zero"] == "null" and german["ninety-eight"] == "achtundneunzig"
    back = open_pairs("tfds:numwords/en_de:1.0.0", "test", source="de", target="en", data_dir=data_dir)
    assert back.languages == ("de", "en") and not set(back.target) & set(german)
    dutch = open_pairs("tfds:numwords/en_nl", "train", source="en", target="nl", data_dir=data_dir)
    assert dict(zip(dutch.source, dutch.target, strict=True))["twenty-one"] == "eenentwintig"


def test_slices(data_dir):
    parts = [
        open_pairs("tfds:numwords", split, source="en", target="de", data_dir=data_dir)
        for split in ("train[:90%]", "train[90%:]")
    ]
    assert [len(part) for part in parts] == [270, 30] and not set(parts[0].source) & set(parts[1].source)
    assert parts[1].name(0) == "numwords/en_de/1.0.0 train[270]"


@pytest.mark.parametrize(
    ("spec", "split", "languages", "message"),
    [
        ("numwords/en_xx", "train", ("en", "de"), "no config 'en_xx': did you mean 'en_nl'|no config 'en_xx'"),
        ("numwords:2.0.0", "train", ("en", "de"), "one version"),
        ("numwords", "dev", ("en", "de"), "no split 'dev'.*test, train, validation"),
        ("numwords", "train", ("en", "fr"), "no language 'fr'.*de, en"),
        ("digits", "train", ("en", "de"), "is not a translation data set"),
        ("digits/small", "train", ("en", "de"), "no config 'small': it has none"),
    ],
)
def test_unavailable_data(data_dir, spec, split, languages, message):
    with pytest.raises(UserError, match=message):
        open_pairs(f"tfds:{spec}", split, source=languages[0], target=languages[1], data_dir=data_dir)
