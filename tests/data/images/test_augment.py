import dataclasses

import pytest

from attnjax.data.images.augment import Augmentation
from attnjax.errors import UserError


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"flips": True}, "unknown augmentation 'flips': did you mean 'flip'"),
        ({"crop": "padd"}, "unknown augmentation crop 'padd', did you mean 'pad'\\? Known: none, pad, resized"),
        ({"erase_fill": "black"}, "Known: noise, zero"),
        ({"erase": 1.5}, "erase is 1.5: it should be a probability"),
        ({"mixup": -1}, "mixup is -1"),
        ({"repeats": 0}, "repeats is 0"),
        ({"pad": 0}, "pad is 0"),
        ({"randaugment_magnitude": 11}, "from 0 to 10"),
        ({"scale": (0.5, 0.2)}, "scale"),
        ({"ratio": (0.0, 1.0)}, "ratio"),
    ],
)
def test_bad_augmentation(values, message):
    with pytest.raises(UserError, match=message):
        Augmentation(**values)


def test_augmentation_is_off_by_default_and_replaceable():
    assert not Augmentation().mixes
    assert dataclasses.replace(Augmentation(), mixup=0.2).mixes
