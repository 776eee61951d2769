"""Numbers spelled out in English and German, as text files."""

import pytest
from num2words import num2words

from attnjax import config as config_lib
from attnjax import models


@pytest.fixture(scope="session")
def numbers(tmp_path_factory):
    """Returns a folder with the splits `train`, 0 to 249, and `val`, 250 to 269."""
    folder = tmp_path_factory.mktemp("numbers")
    for split, span in (("train", range(250)), ("val", range(250, 270))):
        for language in ("en", "de"):
            lines = [num2words(number, lang=language) for number in span]
            (folder / f"{split}.{language}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def make_config(numbers):
    """Returns a function that makes the config of a tiny Transformer on `numbers`, or of another model."""

    def make(model=None):
        config = config_lib.translation()
        config.model = model or models.fields(
            "transformer", width=8, mlp_dim=16, num_heads=2, encoder_depth=1, decoder_depth=1, max_length=64
        )
        config.data.source = f"text:{numbers}"
        config.data.vocabulary.size = 70
        config.data.batching.max_tokens, config.data.batching.max_length = 768, 32
        config.data.batching.shapes = 3
        return config

    return make
