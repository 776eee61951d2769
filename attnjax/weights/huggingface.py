"""Writing a folder that transformers' from_pretrained loads."""

import json
from pathlib import Path
from typing import Any

import safetensors.numpy

from attnjax.errors import UserError
from attnjax.weights.files import Arrays


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
    folder = Path(folder)
    if (folder / "model.safetensors").exists():
        raise UserError(f"'{folder}' already holds a model.safetensors; choose another folder")
    height, width = image_size
    description = description | {
        "dtype": "float32",
        "image_size": height if height == width else [height, width],
        "num_channels": channels,
        "id2label": {str(i): name for i, name in enumerate(classes)},
        "label2id": {name: i for i, name in enumerate(classes)},
    }
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.numpy.save_file(arrays, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(description, indent=2) + "\n")
