"""Writing a folder that transformers' from_pretrained loads."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.numpy
from sentencepiece import SentencePieceProcessor

from attnjax.data.text.vocabulary import Vocabulary
from attnjax.errors import UserError
from attnjax.weights.files import Arrays


def save_model(folder: str | Path, arrays: Arrays, files: Mapping[str, Any]) -> None:
    """Writes model.safetensors, and beside it `files`, name -> what is in it as JSON.

    UserError if the folder holds weights already.
    """
    folder = Path(folder)
    if (folder / "model.safetensors").exists():
        raise UserError(f"'{folder}' already holds a model.safetensors; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.numpy.save_file(arrays, folder / "model.safetensors", metadata={"format": "pt"})
    _save_json(folder, files)


def save_classifier(
    folder: str | Path,
    arrays: Arrays,
    description: dict[str, Any],
    classes: tuple[str, ...],
    image_size: tuple[int, int],
    channels: int,
) -> None:
    """Writes model.safetensors and config.json: `description` and what all image classifiers say.

    `image_size` is (height, width). UserError if the folder holds weights already.
    """
    height, width = image_size
    description = description | {
        "dtype": "float32",
        "image_size": height if height == width else [height, width],
        "num_channels": channels,
        "id2label": {str(i): name for i, name in enumerate(classes)},
        "label2id": {name: i for i, name in enumerate(classes)},
    }
    save_model(folder, arrays, {"config.json": description})


def save_tokenizer(folder: str | Path, vocabulary: Vocabulary, languages: tuple[str, str], max_length: int) -> None:
    """Writes what transformers' MarianTokenizer.from_pretrained loads; its ids are the vocabulary's.

    `languages` are from and to; `max_length` is the model's, in subwords with eos.
    """
    folder = Path(folder)
    sides = {"source": vocabulary.source, "target": vocabulary.target}
    for name, side in sides.items():
        (folder / f"{name}.spm").write_bytes(side.serialized_model_proto())
    files = {"vocab.json": _ids(vocabulary.source)}
    if not vocabulary.joint:
        files["target_vocab.json"] = _ids(vocabulary.target)
    files["tokenizer_config.json"] = {
        "tokenizer_class": "MarianTokenizer",
        "source_lang": languages[0],
        "target_lang": languages[1],
        "separate_vocabs": not vocabulary.joint,
        "model_max_length": max_length,
        "bos_token": "<s>",  # the decoder's first; not to be seen in a translation
        "clean_up_tokenization_spaces": False,
    }
    _save_json(folder, files)


def _ids(model: SentencePieceProcessor) -> dict[str, int]:
    return {model.id_to_piece(i): i for i in range(model.get_piece_size())}


def _save_json(folder, files):
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
