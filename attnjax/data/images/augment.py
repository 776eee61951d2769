"""Which augmentations are applied to training images, and with which strengths."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

from attnjax.errors import UserError, check_choice, nearest

CROPS = ("none", "pad", "resized")
ERASE_FILLS = ("noise", "zero")


@dataclass(frozen=True)
class Augmentation:
    """Augmentation of training images, by default none; UserError if a value is impossible.

    Applied in this order, except that the flip comes after RandAugment, which does not change the distribution.

    Attributes:
        crop: `pad` (zero-pad by `pad` pixels and crop at a random offset), `resized` (crop a random share `scale` of
            the area with a random aspect `ratio`, and resize it; Szegedy 2015), or `none`.
        flip: mirror left to right with probability 1/2.
        color_jitter: change brightness, contrast and saturation, each by a factor in 1 ± this.
        randaugment_layers, randaugment_magnitude, randaugment_std: RandAugment (Cubuk 2020) as in timm and DeiT.
        erase: probability of random erasing (Zhong 2017), filled with normal `noise` or with `zero` (the mean).
        mixup, cutmix: alpha of Beta(alpha, alpha) for mixup (Zhang 2018) and CutMix (Yun 2019); 0 is off.
        mix_switch: probability of CutMix instead of mixup when both are on.
        mix_probability: probability that a pair of images is mixed at all.
        repeats: number of differently augmented copies of each image, one after the other (Hoffer 2020; DeiT).
    """

    crop: str = "none"
    pad: int = 4
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = False
    color_jitter: float = 0.0
    randaugment_layers: int = 0
    randaugment_magnitude: float = 9.0
    randaugment_std: float = 0.5
    erase: float = 0.0
    erase_fill: str = "noise"
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_switch: float = 0.5
    mix_probability: float = 1.0
    repeats: int = 1

    def __new__(cls, **values):
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                raise UserError(f"unknown augmentation '{name}': {nearest(name, known)}")
        return super().__new__(cls)

    def __post_init__(self):
        check_choice("augmentation crop", self.crop, CROPS)
        check_choice("augmentation erase_fill", self.erase_fill, ERASE_FILLS)
        for name in ("erase", "mix_switch", "mix_probability"):
            _check(self, name, 0 <= getattr(self, name) <= 1, "a probability")
        for name in ("color_jitter", "randaugment_layers", "randaugment_std", "mixup", "cutmix"):
            _check(self, name, getattr(self, name) >= 0, "0 (off) or more")
        for name in ("pad", "repeats"):
            _check(self, name, getattr(self, name) >= 1, "1 or more")
        _check(self, "randaugment_magnitude", 0 <= self.randaugment_magnitude <= 10, "from 0 to 10")
        _check(self, "scale", _ascending(self.scale) and self.scale[1] <= 1, "(low, high) with 0 < low <= high <= 1")
        _check(self, "ratio", _ascending(self.ratio), "(low, high) with 0 < low <= high")

    @property
    def by_image(self) -> bool:
        """Whether some operation is done image by image, with a generator per row."""
        return self.crop == "resized" or self.color_jitter > 0 or self.randaugment_layers > 0

    @property
    def mixes(self) -> bool:
        """Whether images are mixed in pairs, so that prepared batches have `label_other` and `label_weight`."""
        return self.mixup > 0 or self.cutmix > 0


def _check(augmentation: Augmentation, name: str, right: bool, meaning: str) -> None:
    if not right:
        raise UserError(f"augmentation {name} is {getattr(augmentation, name)}: it should be {meaning}")


def _ascending(interval: Sequence[float]) -> bool:
    return len(interval) == 2 and 0 < interval[0] <= interval[1]
