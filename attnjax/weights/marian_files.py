"""What transformers keeps beside a Marian's weights: its subwords, its languages, and how it decodes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor

from attnjax.data.text.vocabulary import BOS, EOS, PAD, UNK, Vocabulary
from attnjax.errors import UserError
from attnjax.weights.files import read_json

TOKENIZER, GENERATION = "tokenizer_config.json", "generation_config.json"
_SPECIAL = {"pad": PAD, "bos": BOS, "eos": EOS, "unk": UNK}


def write_subwords(folder: Path, vocabulary: Vocabulary) -> None:
    """Writes source.spm and target.spm."""
    for name, side in {"source": vocabulary.source, "target": vocabulary.target}.items():
        Path(folder, f"{name}.spm").write_bytes(side.serialized_model_proto())


def tokenizer_files(vocabulary: Vocabulary, languages: tuple[str, str], max_length: int) -> dict[str, Any]:
    """Returns the JSON files of MarianTokenizer.from_pretrained; `max_length` counts subwords including eos."""
    files: dict[str, Any] = {"vocab.json": _ids(vocabulary.source)}
    if not vocabulary.joint:
        files["target_vocab.json"] = _ids(vocabulary.target)
    files[TOKENIZER] = {
        "tokenizer_class": "MarianTokenizer",
        "source_lang": languages[0],
        "target_lang": languages[1],
        "separate_vocabs": not vocabulary.joint,
        "model_max_length": max_length,
        "bos_token": "<s>",  # the decoder starts from it; marked special so that decoding drops it
        "clean_up_tokenization_spaces": False,
    }
    return files


def generation_fields(decoding: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of generation_config.json for a config's `decoding` group.

    transformers has no gnmt length penalty: then the field is left out, and its search divides by the length.
    """
    exponents = {"none": 0.0, "average": decoding["alpha"]}
    penalty = decoding["length_penalty"]
    return {
        "num_beams": decoding["beam_size"],
        "early_stopping": True if decoding["early_stopping"] else "never",
        "min_length": decoding["min_length"],
        "no_repeat_ngram_size": decoding["no_repeat_ngram"],
        **({"length_penalty": exponents[penalty]} if penalty in exponents else {}),
    }


def read_decoding(folder: str | Path) -> dict[str, Any]:
    """Returns the fields of a config's `decoding` group that generation_config.json, or config.json, states."""
    stated = read_json(folder, "config.json") | read_json(folder, GENERATION)
    names = {"num_beams": "beam_size", "no_repeat_ngram_size": "no_repeat_ngram", "min_length": "min_length"}
    fields: dict[str, Any] = {ours: stated[theirs] for theirs, ours in names.items() if theirs in stated}
    if fields.get("min_length") == 0:
        fields["min_length"] = 1  # which is no minimum either, as it counts eos
    if "early_stopping" in stated:
        fields["early_stopping"] = stated["early_stopping"] is True
    if "length_penalty" in stated:
        exponent = float(stated["length_penalty"])
        fields |= {"length_penalty": "average", "alpha": exponent} if exponent else {"length_penalty": "none"}
    if stated.get("forced_eos_token_id") is not None:
        fields["score_forced_eos"] = False
    return fields


def read_languages(folder: str | Path) -> tuple[str, str] | None:
    """Returns (source, target) of tokenizer_config.json, if it names them."""
    stated = read_json(folder, TOKENIZER)
    source, target = stated.get("source_lang"), stated.get("target_lang")
    return (source, target) if source and target else None


def read_subwords(folder: str | Path) -> Vocabulary:
    """Returns the subwords of a folder that `write_subwords` and `tokenizer_files` wrote.

    UserError where files are missing or damaged, and where token ids are not those of the subword models with pad 0,
    bos 1, eos 2 and unk 3, as in opus-mt's folders: a run folder cannot hold such a vocabulary.
    """
    folder = Path(folder)
    source, target = (_load(folder / f"{name}.spm") for name in ("source", "target"))
    separate = read_json(folder, TOKENIZER).get("separate_vocabs", False)
    if not separate and source.serialized_model_proto() == target.serialized_model_proto():
        target = source
    tables = {"vocab.json": source, "target_vocab.json" if separate else "vocab.json": target}
    for name, model in tables.items():
        ids = read_json(folder, name)
        if ids != _ids(model) or any(getattr(model, f"{token}_id")() != at for token, at in _SPECIAL.items()):
            raise UserError(
                f"'{folder / name}' numbers subwords in another way than attnjax: a run folder needs those of the .spm "
                "files, with pad 0, bos 1, eos 2, unk 3; attnjax.weights.transformer.read reads the weights alone"
            )
    return Vocabulary(source, target)


def _load(path: Path) -> SentencePieceProcessor:
    if not path.is_file():
        raise UserError(f"no subwords '{path}': a translator needs source.spm and target.spm")
    try:
        # Without any bytes the library does not fail here but crashes later.
        return SentencePieceProcessor(model_proto=path.read_bytes() or b"empty")
    except (OSError, RuntimeError):
        raise UserError(f"'{path}' is damaged, or not a sentencepiece model") from None


def _ids(model: SentencePieceProcessor) -> dict[str, int]:
    return {model.id_to_piece(i): i for i in range(model.get_piece_size())}
