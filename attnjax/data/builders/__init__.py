"""TFDS builders for data sets that TFDS lacks: one file each, holding a class named like the file in CamelCase.

They need neither TensorFlow nor a network, so they are prepared on first use. After
`import attnjax.data.builders.NAME`, `tfds.builder(NAME)` and `tfds.data_source(NAME)` know them too.
"""

import importlib
import pkgutil


def names() -> tuple[str, ...]:
    """Returns the names of our own builders, without importing any (TFDS takes about a second)."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def load(name: str) -> type:
    """Imports the builder class of `name`, one of `names()`."""
    module = importlib.import_module(f"{__name__}.{name}")
    return getattr(module, name.title().replace("_", ""))
