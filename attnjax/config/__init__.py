"""Configs: the fields of every experiment (`schema`), and reading, overriding and comparing them (`reading`)."""

from attnjax.config.reading import (
    CADENCE_FIELDS,
    FREE_FIELDS,
    TOLERANCE_FIELDS,
    changes,
    check,
    differences,
    flat,
    from_json,
    load,
    load_sweep,
    override,
    parse,
    read,
    resolve,
    save,
    to_json,
)
from attnjax.config.schema import DEFAULTS, captioning, classification, translation
