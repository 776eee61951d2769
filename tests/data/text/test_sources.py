import gzip
import zipfile

import pytest

from attnjax.data import files
from attnjax.data.text.sources import open_pairs
from attnjax.errors import UserError

TATOEBA = (
    "Hi.\tHallo!\nHi.\tGrüß Gott!\nRun!\tLauf!\nFire!\tFeuer!\nHelp!\tHilfe!\nHelp!\tZu Hülf!\nGo on.\tWeiter.\tCC-BY\n"
)


def write(path, text):
    data = text if isinstance(text, bytes) else text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def open_text(folder, split="train", source="en", target="de", **options):
    return open_pairs(f"text:{folder}", split, source=source, target=target, **options)


def open_tsv(path, split="all", source="en", target="de", **options):
    return open_pairs(f"tsv:{path}:en,de", split, source=source, target=target, **options)


def both(pairs):
    return list(zip(pairs.source, pairs.target, strict=True))


# Parallel text files


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_text(tmp_path, suffix):
    write(tmp_path / f"train.en{suffix}", "\ufeffone\ntwo\u2028and \r\nthree")
    write(tmp_path / f"train.de{suffix}", "eins\nzwei\n  drei\n")
    pairs = open_text(tmp_path)
    assert len(pairs) == 3 and pairs.languages == ("en", "de")
    assert both(pairs) == [("one", "eins"), ("two\u2028and", "zwei"), ("three", "drei")]
    assert both(open_text(tmp_path, source="de", target="en")) == [(b, a) for a, b in both(pairs)]
    part = open_text(tmp_path, "train[1:]")
    assert both(part) == both(pairs)[1:]
    assert part.name(1) == f"{tmp_path}/train.en{suffix} line 3"


@pytest.mark.parametrize(
    ("en", "de", "options", "message"),
    [
        ("a\nb\n", "a\nb\nc\n", {}, r"train\.en has 2 lines but .*train\.de has 3"),
        ("a\nb\n", b"a\n\xff\n", {}, r"train\.de is not UTF-8 text: line 2 holds byte 0xff"),
        ("", "a\n", {}, r"train\.en is empty"),
        ("a\n", " \n\n", {}, r"train\.de is empty"),
        ("a\n\nb\n", "a\nb\n\n", {}, r"train\.en line 2 has a blank sentence \('en'\), like 2 of 3 pairs"),
        ("a\nb\n", "a\n \t\n", {}, r"train\.en line 2 has a blank sentence \('de'\)"),
        ("a\n\n", "\na\n", {"skip_blank": True}, "all of its 2 pairs"),
        ("a\n", "a\n", {"split": "test"}, "no split 'test'.*Known: train"),
        ("a\n", "a\n", {"target": "fr"}, "no language 'fr' in split 'train'.*Known: de, en"),
        ("a\n", "a\n", {"target": "en"}, "two different languages"),
        ("a\n", "a\n", {"split": "train[1:]"}, "empty"),
        ("a\n", "a\n", {"split": "train[:5]"}, "beyond the 1"),
        ("a\n", "a\n", {"split": "train["}, "not a split"),
    ],
)
def test_bad_text(tmp_path, en, de, options, message):
    write(tmp_path / "train.en", en)
    write(tmp_path / "train.de", de)
    with pytest.raises(UserError, match=message):
        open_text(tmp_path, **options)


def test_skipping_blank_lines_is_logged(tmp_path, caplog):
    write(tmp_path / "train.en", "a\n\nc\nd\n")
    write(tmp_path / "train.de", "A\nB\nC\n\n")
    pairs = open_text(tmp_path, skip_blank=True)
    assert both(pairs) == [("a", "A"), ("c", "C")] and pairs.name(1).endswith("train.en line 3")
    assert "left out 2 of 4 pairs" in caplog.text


def test_missing_folder_no_files_and_damage(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        open_text(tmp_path / "none")
    with pytest.raises(UserError, match=r"SPLIT\.LANGUAGE"):
        open_text(tmp_path)
    (tmp_path / "train.en.gz").write_bytes(b"no gzip")
    write(tmp_path / "train.de", "a\n")
    with pytest.raises(UserError, match=r"cannot read .*train\.en\.gz"):
        open_text(tmp_path)


def test_compressed_text_beyond_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_BYTES", 1000)
    write(tmp_path / "train.en", "a\n" * 500)
    write(tmp_path / "train.de.gz", "b\n" * 500)
    assert len(open_text(tmp_path)) == 500
    write(tmp_path / "train.de.gz", "b\n" * 501)
    with pytest.raises(UserError, match=r"train\.de\.gz has more than 1,000 bytes when decompressed"):
        open_text(tmp_path)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("deu.txt", "a\tb\n" * 251)
    with pytest.raises(UserError, match=r"a\.zip has more than 1,000 bytes when decompressed"):
        open_tsv(tmp_path / "a.zip")


@pytest.mark.parametrize("spec", ["x", "text:", "csv:a", "folder:x"])
def test_unknown_kind(spec):
    with pytest.raises(UserError, match="is not text:FOLDER"):
        open_pairs(spec, "train", source="en", target="de")


# TSV


def tsv_files(tmp_path):
    yield write(tmp_path / "a.tsv", TATOEBA)
    yield write(tmp_path / "a.tsv.gz", TATOEBA)
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("deu.txt", TATOEBA)
        archive.writestr("_about.txt", "Who made this.")
    yield path


def test_tsv(tmp_path):
    found = [both(open_tsv(path)) for path in tsv_files(tmp_path)]
    assert found[0] == found[1] == found[2]
    assert sorted(found[0]) == sorted(tuple(line.split("\t")[:2]) for line in TATOEBA.splitlines())
    back = open_tsv(tmp_path / "a.zip", source="de", target="en")
    assert sorted(back.target) == sorted(open_tsv(tmp_path / "a.tsv").source)
    assert open_tsv(tmp_path / "a.zip").name(0).startswith(f"{tmp_path}/a.zip/deu.txt line ")


@pytest.mark.parametrize("bound", ["1", "3", "50%", "-20%", "-1"])
def test_a_source_sentence_is_in_one_slice(tmp_path, bound):
    path = write(tmp_path / "a.tsv", "".join(f"{i // 7}\t{i}\n" for i in range(100)))
    whole = open_tsv(path)
    assert whole.source != sorted(whole.source, key=int)
    try:
        parts = [open_tsv(path, f"all[:{bound}]"), open_tsv(path, f"all[{bound}:]")]
    except UserError as error:  # the only sentence beyond the bound begins before it
        assert "empty" in str(error) and bound in ("1", "3")
        return
    assert both(parts[0]) + both(parts[1]) == both(whole)
    assert not set(parts[0].source) & set(parts[1].source)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\tb\nno tab\n", "line 2 has no tab"),
        ("a\tb\n\nc\td\n", "line 2 has a blank sentence"),
        ("a\tb\n\td\n", r"line 2 has a blank sentence \('en'\)"),
        (b"\xe4\tb\n", "not UTF-8 text: line 1"),
        ("", "empty"),
    ],
)
def test_bad_tsv(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        open_tsv(write(tmp_path / "a.tsv", text))


def test_bad_tsv_arguments(tmp_path):
    path = write(tmp_path / "a.tsv", TATOEBA)
    with pytest.raises(UserError, match="write tsv:FILE:FIRST,SECOND"):
        open_pairs(f"tsv:{path}", "all", source="en", target="de")
    with pytest.raises(UserError, match=r"no split 'train'.*all"):
        open_tsv(path, "train")
    with pytest.raises(UserError, match=r"no language 'fr'.*de, en"):
        open_tsv(path, target="fr")
    with pytest.raises(UserError, match="no text file"):
        open_tsv(tmp_path / "none.tsv")
    with pytest.raises(UserError, match="no text file"):
        open_tsv(tmp_path / "none.zip")
    with pytest.raises(UserError, match="cannot read"):
        open_tsv(write(tmp_path / "b.zip", TATOEBA))
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as archive:
        archive.writestr("a.txt", TATOEBA)
        archive.writestr("b.txt", TATOEBA)
    with pytest.raises(UserError, match=r"one text file.*a\.txt, b\.txt"):
        open_tsv(tmp_path / "two.zip")


# Real data


def test_multi30k(real_data):
    folder = real_data / "multi30k/data/task1/raw"
    sizes = {split: len(open_text(folder, split)) for split in ("train", "val", "test_2016_flickr")}
    assert sizes == {"train": 29_000, "val": 1_014, "test_2016_flickr": 1_000}
    with pytest.raises(UserError, match="de, en, fr"):
        open_text(folder, target="cs")


def test_tatoeba(real_data):
    path = real_data / "tatoeba-deu-eng/deu-eng.zip"
    train, test = open_tsv(path, "all[:95%]"), open_tsv(path, "all[95%:]")
    assert len(train) + len(test) == 169_813 and not set(train.source) & set(test.source)
