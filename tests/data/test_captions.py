import gzip
import io
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image

from attnjax.data.captions import CaptionOptions, open_captions, shuffled, training_images
from attnjax.data.images.augment import Augmentation
from attnjax.data.images.format import ImageFormat
from attnjax.data.images.pipeline import eval_batch
from attnjax.data.images.preparation import prepare
from attnjax.errors import UserError

CAPTIONS = {
    "train": {"a.jpg": ["A dog runs .", "one dog"], "b.jpg": ["A cat ."], "c.jpg": ["Two men", "men", "some men"]},
    "dev": {"d.jpg": ["A bird"]},
}
SHADES = {name: shade for shade, name in enumerate(("a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg"), 1)}
SIZE = (10, 12)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


def png(shade, size=SIZE):
    stream = io.BytesIO()
    Image.fromarray(np.full((*size, 3), 40 * shade, np.uint8)).save(stream, "png")
    return stream.getvalue()


def write_images(place):
    """Writes one image per name, each in its own shade, to a folder or zip; all are PNGs, despite their names."""
    if place.suffix == ".zip":
        with zipfile.ZipFile(place, "w") as archive:
            for name, shade in SHADES.items():
                archive.writestr(f"photos/{name}", png(shade))
        return
    place.mkdir()
    for name, shade in SHADES.items():
        (place / name).write_bytes(png(shade))


def write_flickr8k(folder, suffix="", text="", images="images.zip"):
    rows = [
        f"{name}#{i}\t{caption}\n"
        for split in CAPTIONS.values()
        for name, captions in split.items()
        for i, caption in enumerate(captions)
    ]
    write(folder / text / f"Flickr8k.token.txt{suffix}", "".join([*rows, "gone.jpg#0\tnot of a split\n"]))
    for split, captions in CAPTIONS.items():
        write(folder / text / f"Flickr_8k.{split}Images.txt{suffix}", "".join(f"{name}\n" for name in captions))
    write_images(folder / images)
    return f"flickr8k:{folder}"


def write_own(folder, suffix="", text=None):
    for split, captions in CAPTIONS.items():
        rows = [f"{name}\t{caption}\n" for name, texts in captions.items() for caption in texts]
        write(folder / f"{split}.tsv{suffix}", "".join(rows) if text is None else text)
    write_images(folder / "photos")
    return f"captions:{folder}"


def write_guided(folder, lines="train\t2\ta.jpg\ntrain\t0\tphotos/b.jpg\ndev\t0\tc.jpg\n"):
    for language, sentences in {"en": "one\ntwo\nthree\n", "de": "eins\nzwei\ndrei\n"}.items():
        write(folder / f"train.{language}", sentences)
    write(folder / "lines.tsv", lines)
    write_images(folder / "images.zip")
    places = {"images": str(folder / "images.zip"), "image_lines": str(folder / "lines.tsv")}
    return f"text:{folder}", {"languages": ("en", "de")} | places


def open_one(spec, split="train", **options):
    return open_captions(spec, split, CaptionOptions(**{"languages": ("image", "en")} | options))


def shades(source, indices=None):
    images, _, mask = source.images.load(np.arange(len(source)) if indices is None else np.array(indices))
    assert mask.all()
    return [int(image[0, 0, 0]) // 40 for image in images]


# What is read


@pytest.mark.parametrize(
    ("suffix", "text", "images"),
    [("", "", "images"), (".gz", "", "images.zip"), ("", "Flickr8k_text", "Flicker8k_Dataset")],
)
def test_flickr8k(tmp_path, suffix, text, images):
    spec = write_flickr8k(tmp_path, suffix, text, images)
    source = open_one(spec)
    assert list(source.references) == list(CAPTIONS["train"].values())
    assert source.sources is None and source.languages == ("image", "en") and len(source) == 3
    assert shades(source) == [1, 2, 3] and source.name(2) == "flickr8k train c.jpg"
    part = open_one(spec, "train[1:]")
    assert list(part.references) == list(CAPTIONS["train"].values())[1:] and shades(part) == [2, 3]
    assert part.name(1) == source.name(2) and part.images.name(1).endswith("c.jpg")
    assert shades(open_one(spec, "dev")) == [4]


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_own_captions(tmp_path, suffix):
    spec = write_own(tmp_path, suffix)
    source = open_one(spec)
    assert list(source.references) == list(CAPTIONS["train"].values()) and shades(source) == [1, 2, 3]
    assert shades(open_one(spec, "train[:1]")) == [1] and source.name(1) == f"{tmp_path}/train.tsv{suffix} b.jpg"
    shutil.rmtree(tmp_path / "photos")
    write_images(tmp_path / "images.zip")
    assert shades(open_one(spec)) == [1, 2, 3]


def test_lines_that_have_an_image(tmp_path):
    spec, options = write_guided(tmp_path)
    source = open_one(spec, **options)
    assert source.sources == ["three", "one"] and source.references == [["drei"], ["eins"]]
    assert shades(source) == [1, 2] and source.name(0) == f"{tmp_path}/train.en line 3"
    part = open_one(spec, "train[1:]", **options)
    assert part.sources == ["one"] and part.references == [["eins"]] and shades(part) == [2]


def test_pairs_have_a_reference_each_and_know_their_image(tmp_path):
    pairs, example = open_one(write_own(tmp_path)).pairs()
    assert example.tolist() == [0, 0, 1, 2, 2, 2] and set(pairs.source) == {""}
    assert pairs.target == [text for texts in CAPTIONS["train"].values() for text in texts]
    assert pairs.name(5) == f"{tmp_path}/train.tsv c.jpg" and pairs.languages == ("image", "en")
    guided, options = write_guided(tmp_path / "guided")
    pairs, example = open_one(guided, **options).pairs()
    assert pairs.source == ["three", "one"] and pairs.target == ["drei", "eins"] and example.tolist() == [0, 1]


@pytest.mark.parametrize("part", ["", "[:2]"])
def test_shuffled_gives_no_one_its_own_image(tmp_path, part):
    source = open_one(write_own(tmp_path), f"train{part}")
    other = shuffled(source)
    given = shades(other)
    assert sorted(given) == shades(source) and not any(np.equal(given, shades(source)))
    assert shades(other, [1]) == given[1:2] and other.references == source.references


# What is refused

TOKENS = "a.jpg#0\tA dog\nb.jpg#0\tA cat\nc.jpg#0\tmen\nd.jpg#0\tA bird\n"
BAD_FLICKR8K = {
    "image without caption": ({"Flickr8k.token.txt": TOKENS[:14]}, "image b.jpg of split 'train' has no caption"),
    "caption without image": ({"Flickr_8k.trainImages.txt": "gone.jpg\n"}, "has no image gone.jpg"),
    "blank caption": ({"Flickr8k.token.txt": TOKENS.replace("A cat", " ")}, "train b.jpg has a caption without text"),
    "no number": (
        {"Flickr8k.token.txt": "a.jpg\tA dog\n"},
        "token.txt line 1 is not FILE#NUMBER, a tab, and a caption",
    ),
    "no tab": ({"Flickr8k.token.txt": TOKENS + "e.jpg#0 A dog\n"}, "token.txt line 5 is not FILE#NUMBER"),
    "no text": ({"Flickr8k.token.txt": None}, "has no Flickr8k.token.txt, gzipped"),
    "no images": ({"images.zip": None}, "has no images: it should contain one of images.zip"),
    "no zip": ({"images.zip": "text"}, "images.zip is neither a folder nor a zip file"),
}


@pytest.mark.parametrize("case", BAD_FLICKR8K)
def test_bad_flickr8k(tmp_path, case):
    changes, message = BAD_FLICKR8K[case]
    spec = write_flickr8k(tmp_path)
    for name, text in changes.items():
        (tmp_path / name).unlink() if text is None else write(tmp_path / name, text)
    with pytest.raises(UserError) as error:
        open_one(spec)
    assert message in str(error.value) and "\n" not in str(error.value)


BAD_OWN = {
    "blank caption": ("a.jpg\tA dog\na.jpg\t \n", "a.jpg has a caption without text: remove it, or set data.skip"),
    "one column": ("a.jpg\tA dog\nb.jpg A cat\n", "train.tsv line 2 has 1 columns: it should have 2"),
    "three columns": ("a.jpg\tA\tdog\n", "train.tsv line 1 has 3 columns"),
    "blank line": ("a.jpg\tA dog\n\n", "train.tsv line 2 has 1 columns"),
    "no file": ("a.jpg\tA dog\n\tA cat\n", "train.tsv line 2 names no image file"),
    "missing image": ("gone.jpg\tA dog\n", "has no image gone.jpg"),
    "empty": ("", "train.tsv is empty"),
}


@pytest.mark.parametrize("case", BAD_OWN)
def test_bad_own_captions(tmp_path, case):
    text, message = BAD_OWN[case]
    with pytest.raises(UserError) as error:
        open_one(write_own(tmp_path, text=text))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_blank_captions_can_be_skipped(tmp_path):
    source = open_one(write_own(tmp_path, text="a.jpg\tA dog\na.jpg\t \nb.jpg\t\nc.jpg\tmen\n"), skip_blank=True)
    assert list(source.references) == [["A dog"], ["men"]] and shades(source) == [1, 3]


BAD_LINES = {
    "beyond the last": ("train\t3\ta.jpg\n", "line 1: '3' is not a line of split 'train', which has 3, from 0"),
    "negative": ("train\t0\tb.jpg\ntrain\t-1\ta.jpg\n", "line 2: '-1' is not a line"),
    "columns": ("train\t0\n", "lines.tsv line 1 has 2 columns: it should have 3"),
    "no such split": ("val\t0\ta.jpg\n", "lines.tsv has no lines of split 'train'"),
    "missing image": ("train\t0\tgone.jpg\n", "has no image gone.jpg"),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_bad_image_lines(tmp_path, case):
    lines, message = BAD_LINES[case]
    spec, options = write_guided(tmp_path, lines)
    with pytest.raises(UserError) as error:
        open_one(spec, **options)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_bad_arguments(tmp_path):
    spec = write_own(tmp_path / "own")
    guided, options = write_guided(tmp_path / "guided")
    write(tmp_path / "guided" / "images" / "other" / "a.jpg", "")
    write(tmp_path / "guided" / "images" / "a" / "a.jpg", "")
    for given, message in [
        (dict(spec=spec, split="tran"), "did you mean 'train'"),
        (dict(spec=spec, split="train[3:]"), "empty"),
        (dict(spec="captions:/nowhere"), "no such folder: /nowhere"),
        (dict(spec=f"captions:{tmp_path}"), "it should contain SPLIT.tsv"),
        (dict(spec="captions:"), "is not flickr8k:FOLDER or captions:FOLDER"),
        (dict(spec=guided, **options | {"images": ""}), "nor a source of parallel text with data.images"),
        (dict(spec=guided, skip_blank=True, **options), "data.skip_blank would move the lines"),
        (dict(spec=guided, **options | {"images": f"{tmp_path}/guided/images"}), "2 images named a.jpg"),
    ]:
        with pytest.raises(UserError) as error:
            open_one(**given)
        assert message in str(error.value), given


# Image files


@pytest.fixture
def odd_images(tmp_path):
    """Returns the spec of a folder of one captioned image per kind."""
    rng = np.random.default_rng(0)
    pixels = Image.fromarray(rng.integers(0, 256, (20, 9, 3)).astype(np.uint8))
    for name, mode, suffix in [
        ("grey", "L", "png"),
        ("alpha", "RGBA", "png"),
        ("palette", "P", "png"),
        ("bits", "1", "png"),
        ("cmyk", "CMYK", "jpg"),
        ("wide", "RGB", "jpg"),
    ]:
        image = pixels.resize((33, 7)) if name == "wide" else pixels
        image.convert(mode).save(tmp_path / f"{name}.{suffix}")
    frames = [Image.new("RGB", (5, 5), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "animation.gif", save_all=True, append_images=frames[1:])
    names = sorted(path.name for path in tmp_path.iterdir())
    write(tmp_path / "train.tsv", "".join(f"{name}\tan image\n" for name in names))
    return f"captions:{tmp_path}"


SMALL = ImageFormat((8, 6))


def test_images_of_any_kind_are_rgb_of_one_size(odd_images):
    images = open_one(odd_images).images
    batch = np.asarray(prepare(eval_batch(images, np.array([*range(len(images)), -1]), SMALL), SMALL)["image"])
    assert batch.shape == (8, 8, 6, 3) and batch.dtype == np.float32 and not batch[-1].any()
    assert batch.min() >= -1 and batch.max() <= 1 and all(image.any() for image in batch[:-1])
    names = [images.name(i).rsplit("/", 1)[1] for i in range(len(images))]
    np.testing.assert_allclose(batch[names.index("animation.gif")], np.tile([1.0, -1.0, -1.0], (8, 6, 1)), atol=0.02)
    grey = batch[names.index("grey.png")]
    np.testing.assert_array_equal(grey[..., 0], grey[..., 2])


def test_a_truncated_image_is_named_or_masked(odd_images, tmp_path, caplog):
    path = tmp_path / "wide.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    images = open_one(odd_images).images
    with pytest.raises(UserError, match=rf"cannot read image {path}: "):
        eval_batch(images, np.arange(len(images)), SMALL)
    images = open_one(odd_images, skip_corrupt=True).images
    batch = prepare(eval_batch(images, np.arange(len(images)), SMALL), SMALL)["image"]
    assert [bool(image.any()) for image in batch] == [True] * 6 + [False]
    assert f"skipping image {path}" in caplog.text


def test_training_images_follow_their_pairs(odd_images):
    source = open_one(odd_images)
    index = np.arange(len(source))[::-1]
    attach = training_images(source.images, index, SMALL, Augmentation())
    batch = attach(np.array([0, 3, -1, 1]), slice(1, 4), np.random.default_rng(0))
    expected = eval_batch(source.images, np.array([index[3], -1, index[1]]), SMALL)
    np.testing.assert_array_equal(batch["image"], expected["image"])
    np.testing.assert_array_equal(batch["mask"], expected["mask"])


@pytest.mark.parametrize("fields", [{"mixup": 0.2}, {"cutmix": 0.2}, {"repeats": 2}])
def test_texts_are_not_mixed(odd_images, fields):
    source = open_one(odd_images)
    with pytest.raises(UserError, match="mixup, cutmix and repeats are for classes"):
        training_images(source.images, np.arange(len(source)), SMALL, Augmentation(**fields))


# Real data


def test_real_flickr8k(real_data):
    spec = f"flickr8k:{real_data}/flickr8k-64"
    for split, count in {"train": 6000, "dev": 1000, "test": 1000}.items():
        source = open_one(spec, split)
        assert len(source) == count and {len(texts) for texts in source.references} == {5}
        images, _, _ = source.images.load(np.array([0, count - 1]))
        assert all(image.shape[2] == 3 for image in images)


def test_real_multi30k_lines(real_data):
    folder = real_data / "flickr8k-64"
    options = {"images": str(folder / "images.zip"), "image_lines": str(folder / "multi30k-map.tsv")}
    for split, count in {"train": 6993, "val": 242, "test_2016_flickr": 243}.items():
        spec = f"text:{real_data}/multi30k/data/task1/raw"
        source = open_one(spec, split, languages=("en", "de"), **options)
        assert len(source) == count and all(map(all, zip(source.sources, source.references, strict=True)))
