"""Looks for images that cannot be read, before a training does."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from attnjax.data.images.sources import ImageSource
from attnjax.errors import UserError

_AT_ONCE = 1000


def unreadable(source: ImageSource) -> Iterator[str]:
    """Decodes all images of a source, which should not skip any, and yields a line on each that cannot be read."""

    def look(index: int) -> str:
        try:
            source.load(np.array([index]))
        except UserError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(source), _AT_ONCE):
            yield from filter(None, pool.map(look, range(start, min(start + _AT_ONCE, len(source)))))
