"""Configs: the fields of every experiment (`schema`), and reading, overriding and comparing them (`reading`)."""

from attnjax.config.reading import (
    CADENCE_FIELDS,
    FREE_FIELDS,
    changes,
    check,
    differences,
    flat,
    load,
    load_sweep,
    override,
    parse,
    read,
    resolve,
    save,
)
from attnjax.config.schema import DEFAULTS, captioning, classification, translation
