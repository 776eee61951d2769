"""The handwritten digits of scikit-learn: the test set of the UCI data set by Alpaydin and Kaynak (1998)."""

import io

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from attnjax.data.builders import dataset_info

TEST_EXAMPLES = 360
SPLIT_SEED = 0


class Digits(tfds.core.GeneratorBasedBuilder):
    """1,797 grey images of 8x8 pixels in 10 classes: 1,437 for training, 360 for testing.

    The split is fixed and stratified by class: scikit-learn's `train_test_split` with `random_state=0`.
    """

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        image = tfds.features.Image(shape=(8, 8, 1), encoding_format="png")
        features = tfds.features.FeaturesDict({"image": image, "label": tfds.features.ClassLabel(num_classes=10)})
        return dataset_info(self, features, ("image", "label"), "https://archive.ics.uci.edu/dataset/80")

    def _split_generators(self, dl_manager):
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        pixels, labels = load_digits(return_X_y=True)
        rows = np.arange(len(labels))
        parts = train_test_split(rows, test_size=TEST_EXAMPLES, stratify=labels, random_state=SPLIT_SEED)
        images = np.round(pixels * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
        splits = zip(("train", "test"), parts, strict=True)
        return {split: self._generate_examples(images, labels, rows) for split, rows in splits}

    def _generate_examples(self, images, labels, rows):
        for row in rows:
            png = io.BytesIO()  # TFDS needs TensorFlow to encode arrays, but not to store encoded images
            Image.fromarray(images[row]).save(png, "png")
            yield int(row), {"image": png.getvalue(), "label": int(labels[row])}
