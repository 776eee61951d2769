import re
import subprocess
import sys

import pytest

from attnjax.data.text import vocabulary as module
from attnjax.data.text.sources import open_pairs
from attnjax.data.text.vocabulary import (
    Sampling,
    decode,
    encode,
    load_vocabulary,
    save_vocabulary,
    train_vocabulary,
)
from attnjax.errors import UserError

NOUNS, VERBS = ("dog", "cat", "woman", "Bird", "house"), ("sees", "follows", "likes", "carries")
ENGLISH = [f"The {a} {verb} the {b}." for a in NOUNS for verb in VERBS for b in NOUNS]
GERMAN = [f"Das {a[::-1]} {verb[::-1]} das {b[::-1]}ä." for a in NOUNS for verb in VERBS for b in NOUNS]


def vocabulary(**options):
    return train_vocabulary(ENGLISH, GERMAN, **({"size": 44} | options))


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("joint", [True, False])
def test_round_trip_and_special_ids(tmp_path, kind, joint):
    made = vocabulary(kind=kind, joint=joint, size=44 if joint else 32)
    assert made.joint == joint
    save_vocabulary(made, tmp_path / "vocabulary")
    files = {path.name for path in (tmp_path / "vocabulary").iterdir()}
    assert files == ({"joint.model"} if joint else {"source.model", "target.model"})
    loaded = load_vocabulary(tmp_path / "vocabulary")
    assert loaded.joint == joint
    for side, text in ((loaded.source, ENGLISH), (loaded.target, GERMAN)):
        assert side.vocab_size() == (44 if joint else 32)
        assert [side.id_to_piece(i) for i in range(4)] == ["<pad>", "<s>", "</s>", "<unk>"]
        ids = encode(side, text)
        assert min(map(min, ids)) > 3
        assert decode(side, ids) == text
        assert decode(side, [[1, *ids[0], 2, 0, 0], [2, *ids[0]], []]) == [text[0], "", ""]
    assert encode(loaded.source, ["", "</s>", "Ω"])[0] == [] and 3 in encode(loaded.source, ["Ω"])[0]
    assert 2 not in encode(loaded.source, ["</s>"])[0]


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_same_sentences_same_bytes(kind):
    first, second = (vocabulary(kind=kind).source.serialized_model_proto() for _ in range(2))
    assert first == second


def test_lowercase():
    model = vocabulary(lowercase=True).source
    assert decode(model, encode(model, ["THE Dog sees."])) == ["the dog sees."]


def test_sentences_beyond_sentencepieces_limit_are_learnt_from():
    long = " ".join(["zyx"] * 2000)
    model = train_vocabulary([long, "ab"], ["ab", "c"], size=11).source
    assert 3 not in encode(model, ["zyx"])[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 5000}, r"5000 is too large for the sentences of both languages: the largest possible is \d+"),
        ({"size": 5000, "kind": "unigram"}, r"too large .* the largest possible is \d+"),
        ({"size": 5000, "joint": False}, "of the source language"),
        ({"size": 10}, r"too small .* their characters and the special ids need \d+"),
        ({"kind": "word"}, "unknown kind of vocabulary 'word'.*bpe, unigram"),
        ({"coverage": 0.5}, "coverage is 0.5"),
    ],
)
def test_vocabularies_that_cannot_be_learnt(capfd, options, message):
    with pytest.raises(UserError, match=message):
        vocabulary(**options)
    assert capfd.readouterr().err == ""


def test_largest_possible_size_is_possible():
    with pytest.raises(UserError) as error:
        vocabulary(size=5000)
    size = int(str(error.value).split()[-1])
    assert vocabulary(size=size).source.vocab_size() == size


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_word_beyond_sentencepieces_limit_is_cut(kind, monkeypatch):
    """sentencepiece ends the process at 2**16 characters without a blank; unigrams are slow long before that."""
    long = "ab" * 2**15 + " dog"
    if kind == "bpe":
        train_vocabulary([*ENGLISH, long], GERMAN, size=44)
    monkeypatch.setattr(module, "LONGEST_WORD", 30)
    monkeypatch.setattr(module, "_LONG_WORD", re.compile(r"(\S{30})\S+"))
    made = [train_vocabulary([*ENGLISH, line], GERMAN, size=44, kind=kind) for line in (long, "ab" * 15 + " dog")]
    assert len({vocabulary.source.serialized_model_proto() for vocabulary in made}) == 1


def test_missing_and_damaged_vocabularies(tmp_path):
    with pytest.raises(UserError, match="no vocabulary in"):
        load_vocabulary(tmp_path)
    for damaged in (b"damaged", b"\x08\x01", b"\0" * 500, b""):
        (tmp_path / "joint.model").write_bytes(damaged)
        with pytest.raises(UserError, match=r"cannot read vocabulary .*joint\.model"):
            load_vocabulary(tmp_path)


def test_a_saved_vocabulary_replaces_what_was_there(tmp_path):
    """What an interrupted save left, and the files of another vocabulary."""
    (tmp_path / "source.model").touch()
    (tmp_path / ".joint.model.tmp").write_text("half a model")
    files = save_vocabulary(vocabulary(), tmp_path)
    assert files == list(tmp_path.iterdir()) == [tmp_path / "joint.model"]


# Sampling


@pytest.mark.parametrize(
    ("kind", "sampling"),
    [("bpe", Sampling(0.2)), ("unigram", Sampling(0.1)), ("unigram", Sampling(0.2, nbest=8))],
)
def test_sampling_is_a_function_of_the_seed(kind, sampling):
    model = vocabulary(kind=kind).source
    first = encode(model, ENGLISH, sampling, (1, 2))
    other = encode(model, ENGLISH, sampling, (1, 3))
    assert encode(model, ENGLISH, sampling, (1, 2)) == first != other
    assert first != encode(model, ENGLISH) == encode(model, ENGLISH, Sampling())
    assert decode(model, first) == decode(model, other) == ENGLISH


def test_sampling_is_the_same_in_every_process(tmp_path):
    folder = tmp_path / "vocabulary"
    save_vocabulary(vocabulary(), folder)
    script = (
        "import sys, pathlib; from attnjax.data.text import vocabulary as text; "
        "model = text.load_vocabulary(pathlib.Path(sys.argv[1])).source; "
        "print(text.encode(model, sys.argv[2:], text.Sampling(0.3), (1, 2)))"
    )
    command = [sys.executable, "-c", script, str(folder), *ENGLISH]
    elsewhere = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert elsewhere.strip() == str(encode(load_vocabulary(folder).source, ENGLISH, Sampling(0.3), (1, 2)))


def test_bad_sampling():
    for fields in ({"alpha": 1.5}, {"alpha": -0.1}, {"nbest": 0}):
        with pytest.raises(UserError, match=next(iter(fields))):
            Sampling(**fields)
    with pytest.raises(UserError, match="BPE vocabulary has no list"):
        encode(vocabulary().source, ENGLISH, Sampling(0.1, nbest=5))


def test_multi30k(real_data):
    pairs = open_pairs(f"text:{real_data}/multi30k/data/task1/raw", "val", source="en", target="de")
    model = train_vocabulary(pairs.source, pairs.target, size=2000)
    for side, text in ((model.source, pairs.source), (model.target, pairs.target)):
        assert [" ".join(line.split()) for line in decode(side, encode(side, text))] == [
            " ".join(line.split()) for line in text
        ]
