"""Reads encoder-decoder Transformers: Hugging Face's Marian, Marian's own npz, fairseq.

Our padding is token 0, elsewhere it is not: `read` moves its row to the front of every table. The ids before it grow by
one, those after it stay:

    format        theirs                                    ours                                 decoder starts from
    opus-mt       eos 0, unk 1, ..., pad V - 1              pad 0, eos 1, unk 2, ...             pad
    Marian's npz  eos 0, unk 1, ..., V - 1; no pad          pad 0 (zeros), eos 1, unk 2, ...     pad
    fairseq       bos 0, pad 1, eos 2, unk 3, ...           pad 0, bos 1, eos 2, unk 3, ...      eos
"""

import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from attnjax.errors import UserError
from attnjax.models.transformer import Transformer
from attnjax.weights import fairseq, marian
from attnjax.weights.files import read_arrays
from attnjax.weights.naming import check_settings, detect, from_published
from attnjax.weights.transformer_family import BIAS, OUTPUT, SOURCE, TARGET

FAMILIES = (marian.HUGGINGFACE, marian.MARIAN, fairseq.FAIRSEQ)
# Transformer.tie -> the tables that equal the target's, fewest first.
_TIED = {"none": (), "decoder": (OUTPUT,), "all": (OUTPUT, SOURCE)}


def read(path: str | Path, model: Transformer) -> dict[str, Any]:
    """Returns the parameters (nested, float32) of `model` from a file or folder of one of FAMILIES.

    Padding comes first in the tables, as described above; for Marian's npz our vocabularies have one token more than
    the file. Heads and activation are checked if the file describes them (fairseq's options are not read). UserError if
    the file cannot be read, follows no known naming, has other positions, ties or an output bias than the model,
    describes a different computation, or does not fit the model.
    """
    where, arrays = str(path), read_arrays(path)
    fmt = detect(arrays, [family.format for family in FAMILIES], where)
    (family,) = (family for family in FAMILIES if family.format is fmt)
    family.check(model)
    description = family.describe(Path(path), arrays)
    check_settings(fmt, model, description, where)
    arrays = fmt.prepare(_drop_buffers(arrays, family, where))
    arrays = _place_tables(arrays, family, model, family.pad(description), where)
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    fresh = flatten_dict(jax.eval_shape(model.init, jax.random.key(0), tokens, tokens), sep="/")
    variables = from_published(arrays, fmt, model, {path: struct.shape for path, struct in fresh.items()}, where)
    return unflatten_dict({path: jnp.asarray(x, jnp.float32) for path, x in variables.items()}, sep="/")["params"]


def _drop_buffers(arrays, family, where):
    """Returns the parameters alone; UserError for a buffer with which the file's model computes something else."""
    kept = {}
    for name, array in arrays.items():
        problems = [check(array) for pattern, check in family.buffers.items() if re.search(pattern, name)]
        if any(problems):
            raise UserError(f"'{where}': {name} {'; '.join(filter(None, problems))}")
        if not problems:
            kept[name] = array
    return kept


def _place_tables(arrays, family, model, pad, where):
    """Returns the arrays with just the tables that the model has, under the format's names and padding first."""
    tables = {}
    for ours, names in family.tables.items():
        if found := [name for name in names if name in arrays]:
            tables[ours] = _pad_first(arrays[found[0]], pad, f"'{where}': {found[0]}")
    modules = family.format.modules(model)
    if not model.output_bias and (largest := np.abs(tables.pop(BIAS, 0)).max()) > 0:
        raise UserError(f"'{where}': {modules[BIAS]} adds up to {largest:.2g} to the logits: use output_bias=True")
    ties = [tie for tie, paths in _TIED.items() if all(_equal(tables, path) for path in paths)]
    if model.tie not in ties:
        raise UserError(f"'{where}' has separate tables, which this model ties (tie={model.tie}): use tie={ties[-1]}")
    own = {modules[path]: table for path, table in tables.items() if path not in _TIED[model.tie]}
    known = {name for names in family.tables.values() for name in names}
    return {name: array for name, array in arrays.items() if name not in known} | own


def _equal(tables, path):
    return path not in tables or TARGET not in tables or np.array_equal(tables[path], tables[TARGET])


def _pad_first(table, pad, what):
    """Moves the padding row of a table (V, ...) to the front; without one, prepends zeros: (V + 1, ...)."""
    if pad is None:
        return np.concatenate([np.zeros_like(table[:1]), table])
    if not 0 <= pad < len(table):
        raise UserError(f"{what} has {len(table)} rows, so padding cannot be token {pad}")
    return np.concatenate([table[pad : pad + 1], np.delete(table, pad, axis=0)])
