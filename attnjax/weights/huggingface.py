"""Writes our models as folders that transformers' `from_pretrained` loads."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np
import safetensors.numpy
from flax.traverse_util import flatten_dict
from sentencepiece import SentencePieceProcessor

from attnjax.data.text.vocabulary import Vocabulary
from attnjax.errors import UserError
from attnjax.models.transformer import Transformer
from attnjax.weights import marian, swin, vit
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
    image_shape: tuple[int, int, int],
) -> str:
    """Writes model.safetensors and config.json; returns the name of transformers' class that reads them.

    `name` is the model's in the registry, `params` are nested, `image_shape` is (H, W, C). Array names are those of
    transformers 4, as on the Hub; version 5 reads them too. UserError if transformers cannot compute this model for
    these images, or the folder already holds weights.
    """
    check_writable(name)
    make, reader = WRITERS[name]
    height, width, channels = image_shape
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
    save_model(Path(folder), arrays, {"config.json": description})
    return reader


def write_translator(
    folder: str | Path, model: nn.Module, params: Mapping[str, Any], vocabulary: Vocabulary, languages: tuple[str, str]
) -> str:
    """Writes a Transformer as a Marian with its subwords; returns the names of transformers' classes that read it.

    Token ids stay ours. `languages` are (source, target). UserError if Marian cannot compute this model, or the folder
    already holds weights.
    """
    check_writable("transformer" if isinstance(model, Transformer) else type(model).__name__.lower())
    make, readers = WRITERS["transformer"]
    arrays, files = make(model, _flat(params))
    save_model(Path(folder), arrays, files | _tokenizer_files(vocabulary, languages, model.max_length))
    for name, side in {"source": vocabulary.source, "target": vocabulary.target}.items():
        Path(folder, f"{name}.spm").write_bytes(side.serialized_model_proto())
    return readers


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


def _tokenizer_files(vocabulary: Vocabulary, languages: tuple[str, str], max_length: int) -> dict[str, Any]:
    """Returns the JSON files of MarianTokenizer.from_pretrained; `max_length` counts subwords including eos."""
    files: dict[str, Any] = {"vocab.json": _ids(vocabulary.source)}
    if not vocabulary.joint:
        files["target_vocab.json"] = _ids(vocabulary.target)
    files["tokenizer_config.json"] = {
        "tokenizer_class": "MarianTokenizer",
        "source_lang": languages[0],
        "target_lang": languages[1],
        "separate_vocabs": not vocabulary.joint,
        "model_max_length": max_length,
        "bos_token": "<s>",  # the decoder starts from it; marked special so that decoding drops it
        "clean_up_tokenization_spaces": False,
    }
    return files


def _ids(model: SentencePieceProcessor) -> dict[str, int]:
    return {model.id_to_piece(i): i for i in range(model.get_piece_size())}
