"""Image folders that are damaged, hostile or oddly laid out: an error that names the cause, or the right pixels."""

import io
import os
import shutil
import struct
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from attnjax.data import fingerprint
from attnjax.data.images import decode, format
from attnjax.data.images.decode import decode_image
from attnjax.data.images.folders import folder_splits, list_images
from attnjax.data.images.format import ImageFormat
from attnjax.data.images.sources import open_source, split_names
from attnjax.errors import UserError


@pytest.fixture
def folder(tmp_path, write_images):
    """Twenty images in two classes."""
    return write_images(tmp_path / "mine", {f"train/{c}/{i}.png": (4, 5) for c in ("cat", "dog") for i in range(10)})


def load_all(source):
    return source.load(np.arange(len(source)))


def encoded(image, kind="png", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


# Files that cannot be read, and corrupt ones


def test_a_missing_file_is_never_skipped(folder):
    source = open_source(f"folder:{folder}", "train", skip_corrupt=True, cache_bytes=0)
    load_all(source)
    folder.rename(folder.with_name("away"))
    with pytest.raises(UserError, match=r"cannot read image .*\.png: No such file or directory"):
        load_all(source)


@pytest.mark.parametrize(("count", "share", "fits"), [(1, 0.0, True), (2, 0.1, True), (3, 0.1, False), (3, 0.15, True)])
def test_too_many_corrupt_images_stop(folder, count, share, fits):
    for i in range(count):
        (folder / f"train/cat/{i}.png").write_bytes(b"")
    source = open_source(f"folder:{folder}", "train", skip_corrupt=True, max_skipped=share, cache_bytes=0)
    if fits:
        assert [load_all(source)[2].sum() for _ in range(2)] == [20 - count] * 2
    else:
        with pytest.raises(
            UserError, match=r"3 of 20 images are corrupt, more than data.max_skipped=0.1 .*: it is empty"
        ):
            load_all(source)


def test_a_share_is_from_0_to_1(folder):
    with pytest.raises(UserError, match=r"max_skipped is 1\.5"):
        open_source(f"folder:{folder}", "train", max_skipped=1.5)


@pytest.mark.parametrize(("data", "message"), [(b"", "it is empty"), (b"text", "it is not an image of a known format")])
def test_what_is_no_image_is_said_in_words(data, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        decode_image(data, channels=3)


# Pixels without a fixed range


def grey_tiff(data, width, bits, order="<"):
    """Returns a TIFF of one row, written by hand, as Pillow writes fewer kinds than it reads."""
    tags = {256: width, 257: 1, 258: bits, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: len(data)}
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags.items())
    start = struct.pack(f"{order}HI", 42, 8 + len(data))
    return (b"II" if order == "<" else b"MM") + start + data + struct.pack(f"{order}H", len(tags)) + entries + bytes(4)


@pytest.mark.parametrize(
    ("data", "bits", "order", "expected"),
    [
        (np.array([0, 255, 256, 65535], "<u2").tobytes(), 16, "<", [0, 0, 1, 255]),
        (np.array([0, 255, 256, 65535], ">u2").tobytes(), 16, ">", [0, 0, 1, 255]),
        (np.array([0, 1, 128, 255], "<u4").tobytes(), 32, "<", [0, 1, 128, 255]),
        (bytes([0x00, 0x01, 0x23, 0x80, 0x0F, 0xFF]), 12, "<", [0, 0x12, 0x80, 0xFF]),
    ],
)
def test_grey_tiff(data, bits, order, expected):
    assert decode_image(grey_tiff(data, 4, bits, order), channels=1)[0, :, 0].tolist() == expected


@pytest.mark.parametrize("extreme", [256, -1, 2**31 - 1])
def test_other_32_bit_pixels_are_refused(extreme):
    data = encoded(Image.fromarray(np.array([[0, extreme]], np.int32)), "tiff")
    with pytest.raises(ValueError, match=r"32-bit pixels beyond 0\.\.255"):
        decode_image(data, channels=1)


def test_16_bit_pgm_keeps_its_high_byte():
    data = b"P5 3 1 65535\n" + np.array([0, 0x80FF, 0xFFFF], ">u2").tobytes()
    assert decode_image(data, channels=1)[0, :, 0].tolist() == [0, 0x80, 0xFF]


# More memory than a file of its size suggests


def test_a_long_image_is_cropped_before_it_is_resized(monkeypatch):
    long = decode_image(encoded(Image.new("RGB", (30_000, 1), (10, 20, 30))), channels=3)
    assert (ImageFormat((224, 224)).fit(long) == (10, 20, 30)).all()
    image = np.random.default_rng(0).integers(256, size=(20, 90, 3), dtype=np.uint8)
    for image_format in (ImageFormat((16, 12)), ImageFormat((30, 50), crop_fraction=0.8, interpolation="bicubic")):
        usual = image_format.fit(image)
        monkeypatch.setattr(format, "MAX_PIXELS", 0)
        assert np.abs(image_format.fit(image).astype(int) - usual).max() <= 1
        monkeypatch.undo()


@pytest.mark.parametrize("side", [12_000, 30_000])
def test_an_image_of_too_many_pixels_is_refused(side):
    small = encoded(Image.new("1", (1, 1)))
    header = b"IHDR" + struct.pack(">II", side, side) + small[24:29]
    data = small[:12] + header + struct.pack(">I", zlib.crc32(header)) + small[33:]
    with pytest.raises(decode.DAMAGE, match=rf"Image size \({side**2} pixels\) exceeds limit"):
        decode_image(data, channels=3)


def test_too_large_a_file_is_refused(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(decode, "MAX_BYTES", 1000)
    with zipfile.ZipFile(tmp_path / "mine.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train/cat/1.png", bytes(1001))
        archive.writestr("train/dog/1.png", bytes(1001))
    (folder / "train/cat/0.png").write_bytes(bytes(1001))
    for place in (tmp_path / "mine.zip", folder):
        with pytest.raises(UserError, match="the file has 1,001 bytes, more than the 1,000"):
            load_all(open_source(f"folder:{place}", "train"))


# Contents


def bitmaps(root, shade):
    for name in ("cat", "dog"):
        (root / "train" / name).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (shade, 0, 0)).save(root / "train" / name / "1.bmp")
    return open_source(f"folder:{root}", "train").content()


@pytest.mark.parametrize("limit", [("MAX_BYTES", 2**30), ("MAX_BYTES", 10), ("MAX_FILES", 1)])
def test_other_pixels_of_the_same_size_are_other_data(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(fingerprint, *limit)
    monkeypatch.setattr(fingerprint, "SAMPLED_FILES", 2)
    before = bitmaps(tmp_path / "a", 1)
    shutil.copytree(tmp_path / "a", tmp_path / "b", copy_function=shutil.copyfile)
    assert open_source(f"folder:{tmp_path}/b", "train").content() == before
    assert bitmaps(tmp_path / "a", 2) != before


# Links and names


def test_a_loop_of_links_is_named(folder):
    (folder / "train/cat/again").symlink_to(folder)
    with pytest.raises(UserError, match="train/cat/again is a link to a folder that it is in"):
        open_source(f"folder:{folder}", "train")


def test_links_to_other_folders_and_files_are_followed(folder, tmp_path):
    (tmp_path / "mine2").mkdir()
    (tmp_path / "mine2/train").symlink_to(folder / "train")
    (folder / "train/cat/copy.png").symlink_to(folder / "train/cat/0.png")
    assert len(open_source(f"folder:{tmp_path}/mine2", "train")) == 21


@pytest.mark.parametrize(
    "make", [lambda path: path.symlink_to("nowhere.png"), os.mkfifo, lambda path: path.symlink_to(path)]
)
def test_an_image_that_is_no_file_is_named(folder, make):
    make(folder / "train/cat/odd.png")
    with pytest.raises(UserError, match=r"train/cat/odd\.png"):
        open_source(f"folder:{folder}", "train")


def test_hidden_links_to_nothing_are_ignored(folder):
    (folder / "train/cat/.#lock.png").symlink_to("user@host.123")
    assert len(open_source(f"folder:{folder}", "train")) == 20


def test_names_that_are_not_utf8_are_named(folder):
    path = os.fsencode(folder / "train/cat") + b"/caf\xe9"
    shutil.copy(folder / "train/cat/0.png", path + b".txt")
    assert open_source(f"folder:{folder}", "train").content()
    shutil.copy(folder / "train/cat/0.png", path + b".png")
    with pytest.raises(UserError, match=r"'train/cat/caf\\udce9\.png' is not UTF-8") as raised:
        open_source(f"folder:{folder}", "train")
    str(raised.value).encode()
    with pytest.raises(UserError, match=r"caf\\udce9' is not UTF-8"):
        open_source(os.fsdecode(b"folder:/tmp/caf\xe9"), "train")


def test_a_path_that_the_system_refuses(tmp_path):
    for opened in (lambda: open_source(f"folder:{'a' * 5000}", "train"), lambda: split_names(f"folder:{'a' * 5000}")):
        with pytest.raises(UserError, match=r"cannot open 'folder:a+': File name too long"):
            opened()


# Layouts


@pytest.mark.parametrize(
    ("layout", "split", "count"),
    [
        (["mine/train/cat", "mine/train/dog", "mine/test/cat", "mine/test/dog"], "test", 4),
        (["mine/cat", "mine/dog"], "all", 4),
        (["train/cat/deep", "train/dog"], "train", 4),
        (["photos/cat/deep", "photos/dog"], "photos", 4),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_one_folder_above_the_splits(tmp_path, write_images, layout, split, count, zipped):
    root = write_images(tmp_path / "a", {f"{place}/{i}.png": (4, 5) for place in layout for i in range(2)})
    place = shutil.make_archive(str(root), "zip", root) if zipped else root
    source = open_source(f"folder:{place}", split)
    assert source.classes == ("cat", "dog") and load_all(source)[2].sum() == count and source.content()
    assert (root / source.name(0).removeprefix(f"{place}/")).is_file()
    if split != "photos":
        assert split in folder_splits(list_images(root))
