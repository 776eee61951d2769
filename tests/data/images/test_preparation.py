import jax
import numpy as np
import pytest

from attnjax.data.images.augment import Augmentation
from attnjax.data.images.format import ImageFormat
from attnjax.data.images.pipeline import train_iterator
from attnjax.data.images.preparation import prepare

FORMAT = ImageFormat((16, 12), 3, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))
ALL = Augmentation(flip=True, erase=0.5, erase_fill="zero", mixup=0.8, cutmix=1.0)
EACH = {
    "flip": Augmentation(flip=True),
    "erase": Augmentation(erase=0.7, erase_fill="zero"),
    "mixup": Augmentation(mixup=0.8),
    "cutmix": Augmentation(cutmix=1.0),
    "all": ALL,
}


def drawn(memory_source, augmentation, corrupt=()):
    source = memory_source(64, FORMAT.image_size, 3, corrupt=corrupt)
    return next(train_iterator(source, FORMAT, augmentation, batch_size=64, seed=1))


def by_pixel(batch):
    """The same operations, row by row and in float64."""
    images = []
    for row, image in enumerate(batch["image"]):
        image = image[:, ::-1] if batch.get("flip", [False] * 64)[row] else image
        image = (image / 255 - FORMAT.mean) / FORMAT.std
        top, left, height, width = batch.get("erase", np.zeros((64, 4), int))[row]
        image[top : top + height, left : left + width] = 0
        images.append(image)
    if "mix_weight" not in batch:
        return np.stack(images), None
    mixed, label_weights = [], []
    for row, image in enumerate(images):
        weight, other = batch["mix_weight"][row], images[row ^ 1]
        top, left, height, width = batch["mix_box"][row]
        image = weight * image + (1 - weight) * other
        image[top : top + height, left : left + width] = other[top : top + height, left : left + width]
        mixed.append(image)
        label_weights.append(weight * (1 - height * width / (16 * 12)))
    return np.stack(mixed), np.array(label_weights)


@pytest.mark.parametrize("name", EACH)
def test_the_device_does_what_was_drawn(memory_source, name):
    batch = drawn(memory_source, EACH[name])
    found = jax.jit(prepare, static_argnums=1)(batch, FORMAT)
    images, weights = by_pixel(batch)
    np.testing.assert_allclose(found["image"], images, atol=2e-6)
    if weights is not None:
        np.testing.assert_allclose(found["label_weight"], weights, atol=1e-6)
        np.testing.assert_array_equal(found["label_other"], batch["label"].reshape(-1, 2)[:, ::-1].reshape(-1))


def test_the_host_does_nothing_that_the_device_will(memory_source):
    plain, batch = (drawn(memory_source, augmentation) for augmentation in (Augmentation(), ALL))
    np.testing.assert_array_equal(batch["image"], plain["image"])
    assert batch["image"].dtype == np.uint8


def test_erased_boxes_have_normal_noise_of_their_row(memory_source):
    batch = drawn(memory_source, Augmentation(erase=1.0))
    found = np.asarray(prepare(batch, FORMAT)["image"])
    boxes = []
    for row, (top, left, height, width) in enumerate(batch["erase"]):
        boxes.append(found[row, top : top + height, left : left + width].ravel())
        outside = np.ones((16, 12), bool)
        outside[top : top + height, left : left + width] = False
        expected = (batch["image"][row] / 255 - FORMAT.mean) / FORMAT.std
        np.testing.assert_allclose(found[row][outside], expected[outside], atol=2e-6)
    noise = np.concatenate(boxes)
    assert abs(noise.mean()) < 5 / len(noise) ** 0.5 and abs(noise.std() - 1) < 5 / len(noise) ** 0.5
    assert len(np.unique(noise)) > 0.99 * len(noise)
    part = {name: values[32:] for name, values in batch.items()}
    np.testing.assert_array_equal(prepare(part, FORMAT)["image"], found[32:])


def test_a_skipped_image_is_zeros_and_leaves_its_partner_alone(memory_source):
    batch = drawn(memory_source, Augmentation(cutmix=1.0), corrupt=range(0, 64, 5))
    found = prepare(batch, FORMAT)
    lost = ~batch["mask"]
    assert lost.any() and not np.asarray(found["image"])[lost].any()
    partner = lost.reshape(-1, 2)[:, ::-1].reshape(-1)
    expected = (batch["image"][partner] / 255 - FORMAT.mean) / FORMAT.std
    np.testing.assert_allclose(found["image"][partner & ~lost], expected[~lost[partner]], atol=2e-6)
    np.testing.assert_array_equal(found["label_weight"][partner], 1)
