"""TFDS builders for data sets that TFDS lacks: one file each, with a class named like the file in CamelCase.

They need neither TensorFlow nor a network, so they are prepared on first use. After
`import attnjax.data.builders.NAME`, `tfds.builder(NAME)` and `tfds.data_source(NAME)` work too.
"""

import importlib
import pkgutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tensorflow_datasets as tfds


def names() -> tuple[str, ...]:
    """Returns the names of our builders without importing them, which would import TFDS (about a second)."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def load(name: str) -> "type[tfds.core.GeneratorBasedBuilder]":
    """Returns the builder class of `name`, one of `names()`."""
    module = importlib.import_module(f"{__name__}.{name}")
    return getattr(module, name.title().replace("_", ""))


def dataset_info(
    builder: "tfds.core.DatasetBuilder", features: "tfds.features.FeaturesDict", keys: tuple[str, ...], homepage: str
) -> "tfds.core.DatasetInfo":
    """Returns what TFDS knows about a data set of ours; `keys` are its supervised keys."""
    import tensorflow_datasets as tfds

    # `dataset_info_from_configs` requires the metadata files of TFDS's own package layout.
    return tfds.core.DatasetInfo(
        builder=builder, description=builder.__doc__, features=features, supervised_keys=keys, homepage=homepage
    )
