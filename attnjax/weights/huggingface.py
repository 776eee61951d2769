"""Writes our models as folders that transformers' `from_pretrained` loads."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np
import safetensors.numpy
from flax.traverse_util import flatten_dict

from attnjax.data.images.format import ImageFormat
from attnjax.data.text.vocabulary import Vocabulary
from attnjax.errors import UserError
from attnjax.models.transformer import Transformer
from attnjax.weights import marian, marian_files, preprocessing, swin, vit
from attnjax.weights.files import Arrays

# The models that transformers can compute -> what makes their files, and transformers' classes that read these.
WRITERS: dict[str, tuple[Callable, str]] = {
    "vit": (vit.to_huggingface, "ViTForImageClassification"),
    "swin": (swin.to_huggingface, "SwinForImageClassification"),
    "transformer": (marian.to_huggingface, "MarianMTModel and MarianTokenizer"),
}


def check_writable(name: str) -> None:
    """Raises UserError unless there is a writer for models of this `name` in the registry."""
    if name not in WRITERS:
        raise UserError(f"Hugging Face's formats are not written for {name}, only for: {', '.join(WRITERS)}")


def write_classifier(
    folder: str | Path,
    name: str,
    model: nn.Module,
    params: Mapping[str, Any],
    classes: tuple[str, ...],
    image_format: ImageFormat,
) -> str:
    """Writes model.safetensors, config.json and preprocessor_config.json; returns transformers' classes that read them.

    `name` is the model's in the registry, `params` are nested. Array names are those of transformers 4, as on the Hub;
    version 5 reads them too. No processor of transformers crops images to a shape that is not square: then there is no
    preprocessor_config.json, and the result says so. UserError if transformers cannot compute this model for these
    images, or the folder already holds weights.
    """
    check_writable(name)
    make, reader = WRITERS[name]
    height, width, channels = image_format.shape
    arrays, description = make(model, _flat(params), (height, width))
    description = {
        "architectures": [reader],
        **description,
        "dtype": "float32",
        "image_size": height if height == width else [height, width],
        "num_channels": channels,
        "id2label": {str(i): label for i, label in enumerate(classes)},
        "label2id": {label: i for i, label in enumerate(classes)},
    }
    processor, settings = preprocessing.to_huggingface(image_format)
    files = {"config.json": description} | ({preprocessing.FILE: settings} if processor else {})
    save_model(Path(folder), arrays, files)
    return f"{reader} and {processor}" if processor else f"{reader} (no image processor crops to {height}x{width})"


def write_translator(
    folder: str | Path,
    model: nn.Module,
    params: Mapping[str, Any],
    vocabulary: Vocabulary,
    languages: tuple[str, str],
    decoding: Mapping[str, Any],
) -> str:
    """Writes a Transformer as a Marian with its subwords and search; returns transformers' classes that read it.

    Token ids stay ours. `languages` are (source, target), `decoding` is a config's group. UserError if Marian cannot
    compute this model, or the folder already holds weights.
    """
    check_writable("transformer" if isinstance(model, Transformer) else type(model).__name__.lower())
    make, readers = WRITERS["transformer"]
    arrays, files = make(model, _flat(params))
    files[marian_files.GENERATION] |= marian_files.generation_fields(decoding)
    save_model(Path(folder), arrays, files | marian_files.tokenizer_files(vocabulary, languages, model.max_length))
    marian_files.write_subwords(Path(folder), vocabulary)
    stated = "length_penalty" in files[marian_files.GENERATION]
    return readers if stated else f"{readers} (whose beam search has no length_penalty={decoding['length_penalty']})"


def _flat(params):
    return {path: np.asarray(array) for path, array in flatten_dict({"params": params}, sep="/").items()}


def save_model(folder: Path, arrays: Arrays, files: Mapping[str, Any]) -> None:
    """Writes model.safetensors and JSON `files`, {name: content}; UserError if the folder already holds weights."""
    if (folder / "model.safetensors").exists():
        raise UserError(f"'{folder}' already holds a model.safetensors; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.numpy.save_file(arrays, folder / "model.safetensors", metadata={"format": "pt"})
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
