import gzip
import io
import logging
import shutil
import struct
import zipfile

import numpy as np
import pytest
from PIL import Image

from attnjax.data.images.decode import decode_image
from attnjax.data.images.sources import open_source
from attnjax.errors import UserError


def load_all(source):
    return source.load(np.arange(len(source)))


def paths(*splits, classes=("cat", "dog"), count=3):
    return {f"{split}/{name}/{i}.png": (4, 5) for split in splits for name in classes for i in range(count)}


def zip_folder(folder, target):
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, path.relative_to(folder))
    return target


# Splits


@pytest.mark.parametrize("length", [7, 10, 25])
@pytest.mark.parametrize("bounds", [["25%"], ["-25%"], ["3", "80%"], ["10%", "33%", "-10%"], ["-2"]])
def test_slices_are_disjoint_and_complete(tmp_path, write_images, length, bounds):
    write_images(tmp_path, {f"{i % 2}/{i}.png": (2, 2) for i in range(length)})
    whole = open_source(f"folder:{tmp_path}", "all")
    names = []
    for start, stop in zip(["", *bounds], [*bounds, ""], strict=True):
        part = open_source(f"folder:{tmp_path}", f"all[{start}:{stop}]")
        names += [part.name(i) for i in range(len(part))]
    assert names == [whole.name(i) for i in range(length)]
    assert len(set(names)) == length


def test_slice_reads_the_rows_it_names(tmp_path, write_images):
    write_images(tmp_path, paths("train"))
    whole = open_source(f"folder:{tmp_path}", "train")
    part = open_source(f"folder:{tmp_path}", "train[2:4]")
    assert len(part) == 2
    np.testing.assert_array_equal(load_all(part)[1], load_all(whole)[1][2:4])
    np.testing.assert_array_equal(load_all(part)[0], load_all(whole)[0][2:4])


def test_slice_of_a_folder_holds_all_classes(tmp_path, write_images):
    write_images(tmp_path, paths("train", count=30))
    _, labels, _ = load_all(open_source(f"folder:{tmp_path}", "train[:50%]"))
    assert 5 < labels.sum() < 25


@pytest.mark.parametrize("split", ["train[", "train[:90%", "train[a:b]", "train[1.5:2]", "", "train+test"])
def test_malformed_split(tmp_path, write_images, split):
    write_images(tmp_path, paths("train"))
    with pytest.raises(UserError, match="not a split"):
        open_source(f"folder:{tmp_path}", split)


@pytest.mark.parametrize(
    ("split", "message"),
    [("train[:7]", "beyond the 6"), ("train[:110%]", "beyond"), ("train[-9:]", "beyond"), ("train[3:3]", "empty")],
)
def test_slice_out_of_range(tmp_path, write_images, split, message):
    write_images(tmp_path, paths("train"))
    with pytest.raises(UserError, match=message):
        open_source(f"folder:{tmp_path}", split)


@pytest.mark.parametrize("spec", ["mnist", "files:x", "folder:", "idx"])
def test_unknown_kind(spec):
    with pytest.raises(UserError, match="is not tfds:NAME, folder:PATH or idx:PATH"):
        open_source(spec, "train")


def test_channels(tmp_path, write_images):
    write_images(tmp_path, paths("train"))
    assert load_all(open_source(f"folder:{tmp_path}", "train", channels=1))[0][0].shape == (4, 5, 1)
    with pytest.raises(UserError, match="channels is 2"):
        open_source(f"folder:{tmp_path}", "train", channels=2)


# Folders and zips


def test_folder_and_zip_agree(tmp_path, write_images):
    folder = write_images(tmp_path / "data", paths("train", "test"))
    archive = zip_folder(folder, tmp_path / "data.zip")
    a, b = (open_source(f"folder:{place}", "test") for place in (folder, archive))
    assert a.classes == b.classes == ("cat", "dog")
    assert [a.name(i)[-9:] for i in range(6)] == [b.name(i)[-9:] for i in range(6)]
    for left, right in zip(load_all(a), load_all(b), strict=True):
        np.testing.assert_array_equal(left, right)


def test_labels_follow_the_class_folders(tmp_path, write_images):
    write_images(tmp_path, paths("train", classes=("zebra", "ant", "Bee")))
    source = open_source(f"folder:{tmp_path}", "train")
    assert source.classes == ("Bee", "ant", "zebra")
    images, labels, mask = load_all(source)
    assert labels.dtype == np.int32 and mask.all() and images[0].dtype == np.uint8
    assert all(f"/{source.classes[label]}/" in source.name(i) for i, label in enumerate(labels))


def test_suffix_case_and_other_files(tmp_path, write_images, caplog):
    write_images(tmp_path, {"train/a/1.PNG": (2, 2), "train/a/2.JpEg": (2, 2), "train/b/deep/3.webp": (2, 2)})
    (tmp_path / "train/a/.DS_Store").write_bytes(b"")
    (tmp_path / "train/a/notes.txt").write_bytes(b"")
    assert len(open_source(f"folder:{tmp_path}", "train")) == 3
    assert "1 files are not images" in caplog.text and "notes.txt" in caplog.text


@pytest.mark.parametrize(
    ("files", "split", "message"),
    [
        ({}, "train", "no images in"),
        ({"lonely.png": (2, 2)}, "all", "no images in"),
        (paths("train", "test"), "tset", "no split 'tset': did you mean 'test'\\? Known: test, train"),
        (paths("train", "test"), "all", "no split 'all'"),
        ({"cat/1.png": (2, 2)}, "train", "write the split as 'all'"),
        ({"train/cat/1.png": (2, 2), "cat/1.png": (2, 2)}, "train", "mixes"),
        (paths("train") | paths("test", classes=("cat", "cow")), "train", "'train' and 'test': cow, dog"),
        (paths("train") | paths("test", classes=("cat",)), "test", "'test' and 'train': dog"),
    ],
)
def test_bad_folder_layout(tmp_path, write_images, files, split, message):
    write_images(tmp_path, files)
    with pytest.raises(UserError, match=message):
        open_source(f"folder:{tmp_path}", split)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(
    ("sizes", "split", "empty"), [(paths("train"), "train", "train/cow"), ({"a/1.png": (2, 2)}, "all", "b")]
)
def test_empty_class_folder(tmp_path, write_images, zipped, sizes, split, empty):
    folder = write_images(tmp_path / "data", sizes)
    (folder / empty).mkdir()
    place = zip_folder(folder, tmp_path / "data.zip") if zipped else folder
    with pytest.raises(UserError, match=f"class folder {empty} has no images"):
        open_source(f"folder:{place}", split)


def test_missing_folder_and_not_a_zip(tmp_path):
    with pytest.raises(UserError, match="no such image folder"):
        open_source(f"folder:{tmp_path}/nowhere", "train")
    (tmp_path / "x.zip").write_bytes(b"not a zip")
    with pytest.raises(UserError, match="neither a folder nor a zip"):
        open_source(f"folder:{tmp_path}/x.zip", "train")


@pytest.mark.parametrize("damage", [b"", b"no image at all", "truncated"])
@pytest.mark.parametrize("zipped", [False, True])
def test_corrupt_image_is_named_or_skipped(tmp_path, write_images, caplog, damage, zipped):
    folder = write_images(tmp_path / "data", paths("train") | {"train/dog/bad.jpg": (40, 40)})
    bad = folder / "train/dog/bad.jpg"
    bad.write_bytes(bad.read_bytes()[:300] if damage == "truncated" else damage)
    place = zip_folder(folder, tmp_path / "data.zip") if zipped else folder
    with pytest.raises(UserError, match=r"train/dog/bad\.jpg"):
        load_all(open_source(f"folder:{place}", "train"))

    source = open_source(f"folder:{place}", "train", skip_corrupt=True)
    with caplog.at_level(logging.WARNING):
        load_all(source)
        images, labels, mask = load_all(source)
    assert len(images) == len(labels) == 7 and mask.sum() == 6
    assert "bad.jpg" in source.name(int(np.flatnonzero(~mask)[0]))
    assert caplog.text.count("bad.jpg") == caplog.text.count("skipping") == 1


def test_memory_limit_changes_no_pixel(tmp_path, write_images):
    write_images(tmp_path, paths("train"))
    cached, small, uncached = (open_source(f"folder:{tmp_path}", "train", cache_bytes=size) for size in (10**6, 100, 0))
    order = [2, 0, 2, 5]
    for _ in range(2):
        np.testing.assert_array_equal(cached.load(order)[0], uncached.load(order)[0])
        np.testing.assert_array_equal(small.load(order)[0], uncached.load(order)[0])
    shutil.rmtree(tmp_path / "train")
    assert cached.load([2])[2].all()
    with pytest.raises(UserError, match="cannot read"):
        uncached.load([2])


def test_cifar10_zip(real_data):
    source = open_source(f"folder:{real_data}/cifar10-test/cifar10-test.zip", "test")
    assert len(source) == 10_000
    assert source.classes == tuple(
        ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    )
    images, labels, mask = source.load(np.arange(300))
    assert mask.all() and {image.shape for image in images} == {(32, 32, 3)}
    assert set(labels) == set(range(10))


# Decoding


def encode(image, kind="png", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


RED = Image.new("RGB", (3, 2), (255, 0, 0))


@pytest.mark.parametrize(
    ("data", "rgb"),
    [
        (encode(RED), (255, 0, 0)),
        (encode(Image.new("L", (3, 2), 77)), (77, 77, 77)),
        (encode(Image.new("1", (3, 2), 1)), (255, 255, 255)),
        (encode(Image.new("RGBA", (3, 2), (9, 8, 7, 0))), (9, 8, 7)),
        (encode(Image.new("LA", (3, 2), (50, 10))), (50, 50, 50)),
        (encode(RED.convert("P")), (255, 0, 0)),
        (encode(Image.new("CMYK", (3, 2), (0, 255, 255, 0)), "tiff"), (255, 0, 0)),
        (encode(Image.fromarray(np.full((2, 3), 0x80FF, np.uint16))), (128, 128, 128)),
        (encode(RED, "gif", save_all=True, append_images=[Image.new("RGB", (3, 2), (0, 0, 255))]), (255, 0, 0)),
    ],
    ids=["rgb", "grey", "bilevel", "rgba", "grey-alpha", "palette", "cmyk", "16-bit", "animated"],
)
def test_decoding_modes(data, rgb):
    image = decode_image(data, channels=3)
    assert image.dtype == np.uint8 and image.shape == (2, 3, 3)
    assert (image == rgb).all()
    grey = decode_image(data, channels=1)
    assert grey.shape == (2, 3, 1)
    np.testing.assert_allclose(grey, np.dot(rgb, [0.299, 0.587, 0.114]), atol=1)


def test_exif_orientation_is_applied():
    picture = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3) * 40)
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate 90 degrees clockwise to show
    upright = decode_image(encode(picture, exif=exif), channels=1)[..., 0]
    np.testing.assert_array_equal(upright, np.rot90(np.asarray(picture), -1))


def test_float_pixels_are_refused():
    with pytest.raises(ValueError, match="float"):
        decode_image(encode(Image.new("F", (2, 2)), "tiff"), channels=1)


# IDX


def write_idx(path, array, magic=None):
    header = bytes([0, 0, 8, array.ndim]) if magic is None else magic
    data = header + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


@pytest.fixture
def idx_folder(tmp_path):
    rng = np.random.default_rng(0)
    for prefix, count, ending in (("train", 20, ".gz"), ("t10k", 6, "")):
        write_idx(tmp_path / f"{prefix}-images-idx3-ubyte{ending}", rng.integers(0, 256, (count, 4, 5), np.uint8))
        write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte{ending}", np.arange(count, dtype=np.uint8) % 10)
    return tmp_path


def test_idx(idx_folder):
    test = open_source(f"idx:{idx_folder}", "test", channels=1)
    images, labels, mask = test.load(np.array([3, 1]))
    raw = np.frombuffer((idx_folder / "t10k-images-idx3-ubyte").read_bytes()[16:], np.uint8).reshape(6, 4, 5, 1)
    np.testing.assert_array_equal(images, raw[[3, 1]])
    np.testing.assert_array_equal(labels, [3, 1])
    assert labels.dtype == np.int32 and mask.all() and test.classes == tuple("0123456789")
    train = open_source(f"idx:{idx_folder}", "train[10:]")
    images, labels, _ = train.load(np.array([0, 9]))
    assert images.shape == (2, 4, 5, 3) and labels.tolist() == [0, 9] and len(train) == 10


def test_bad_idx(idx_folder):
    labels = idx_folder / "t10k-labels-idx1-ubyte"
    whole = labels.read_bytes()
    for content, message in ((whole[:-1], "truncated"), (b"\0\0\x0d" + whole[3:], "not an IDX"), (b"", "not an IDX")):
        labels.write_bytes(content)
        with pytest.raises(UserError, match=message):
            open_source(f"idx:{idx_folder}", "test")
    images = idx_folder / "t10k-images-idx3-ubyte"
    pixels = images.read_bytes()
    images.write_bytes(pixels[:4] + struct.pack(">3I", 2**31, 2**31, 4))  # a product of 0 in 64 bits
    with pytest.raises(UserError, match="truncated"):
        open_source(f"idx:{idx_folder}", "test")
    images.write_bytes(pixels)
    write_idx(labels, np.zeros(5, np.uint8))
    with pytest.raises(UserError, match="6 images but"):
        open_source(f"idx:{idx_folder}", "test")
    labels.unlink()
    with pytest.raises(UserError, match="no IDX file"):
        open_source(f"idx:{idx_folder}", "test")
    zipped = idx_folder / "train-images-idx3-ubyte.gz"
    zipped.write_bytes(zipped.read_bytes()[:-20])
    with pytest.raises(UserError, match="cannot read"):
        open_source(f"idx:{idx_folder}", "train")
    with pytest.raises(UserError, match="no split 'val'"):
        open_source(f"idx:{idx_folder}", "val")
