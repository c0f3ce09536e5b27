"""The images themselves: which there are, in what order, and what is said of those that are missing or broken."""

import errno
import io
import os
import pickle
import re
import shutil
import struct
import warnings
import zlib
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader

from esformer.data.base import CorruptImage, DataError
from esformer.data.datasets import DataConfig, resolve
from esformer.data.images import build, decode, read_image
from esformer.data.sources import Folder


def pixels(image):
    return np.asarray(image)


@pytest.fixture
def folder(tmp_path):
    """Twelve training and four validation digits of the classes 0 and 1, as PNG."""
    images, labels = load_digits(n_class=2, return_X_y=True)
    for label in (0, 1):
        for i, image in enumerate(images[labels == label][:8]):
            where = tmp_path / "images" / ("train" if i < 6 else "val") / f"class{label}"
            where.mkdir(parents=True, exist_ok=True)
            Image.fromarray((image.reshape(8, 8) * 15.9).astype(np.uint8)).save(where / f"{i}.png")
    return tmp_path / "images"


def configured(root, **settings):
    return resolve(DataConfig("folder", str(root), **{"img_size": 32, "num_classes": None} | settings))


def test_a_folder_gives_every_image_with_its_class(folder):
    dataset = build(configured(folder), True, pixels)
    paths = sorted((folder / "train").rglob("*.png"))
    assert [dataset.name_of(i) for i in range(len(dataset))] == list(map(str, paths))
    for (image, label), path in zip((dataset[i] for i in range(12)), paths, strict=True):
        assert label == int(path.parent.name[-1])
        assert np.array_equal(image, np.asarray(Image.open(path).convert("RGB")))


def test_which_files_are_images(folder):
    where = folder / "train" / "class0"
    (where / "more").mkdir()
    for name in ("more/9.JPG", "8.Jpeg", "._8.jpg", "notes.txt", "7.webp"):
        Image.new("RGB", (9, 9)).save(where / name, "JPEG")
    (folder / "train" / ".cache").mkdir()
    (folder / "train" / "readme.txt").touch()
    found = Folder(folder / "train")
    names = [os.path.relpath(path, where) for path, label in found.samples if label == 0]
    assert names == ["0.png", "1.png", "2.png", "3.png", "4.png", "5.png", "7.webp", "8.Jpeg", "more/9.JPG"]
    assert found.classes == ["class0", "class1"]


def test_a_large_folder_is_listed_once_unless_it_changes(folder, monkeypatch):
    for place in folder.glob("*/*"):
        os.utime(place, (1e9, 1e9))
    before = len(Folder(folder / "train"))
    with monkeypatch.context() as patch:
        patch.setattr("esformer.data.sources._images_in", None)
        assert len(Folder(folder / "train")) == before
    shutil.copy(folder / "train/class0/0.png", folder / "train/class0/more.png")
    assert len(Folder(folder / "train")) == before + 1
    changed = (folder / "train/class0").stat().st_mtime_ns
    shutil.copy(folder / "train/class0/0.png", folder / "train/class0/another.png")
    os.utime(folder / "train/class0", ns=(changed, changed))  # within one tick of the clock
    assert len(Folder(folder / "train")) == before + 2


def test_classes_without_images_are_named(folder):
    for name in "abcdefg":
        for split in ("train", "val"):
            (folder / split / name).mkdir()
    with pytest.raises(DataError, match=r"train has class folders without images: 'a', 'b', 'c', 'd', 'e' and 2 more"):
        configured(folder)


def test_validation_images_that_are_not_in_class_folders(folder):
    for path in list((folder / "val").rglob("*.png")):
        path.rename(folder / "val" / f"{path.parent.name}_{path.name}")
    for place in (folder / "val").glob("class*/"):
        place.rmdir()
    with pytest.raises(DataError, match=r"images/val has no class folders"):
        configured(folder)


@pytest.mark.parametrize(("split", "there", "wanted"), [("train", 12, 13), ("val", 4, 5)])
def test_there_must_be_as_many_images_as_the_configuration_says(folder, split, there, wanted):
    setting = f"{split}_images"
    message = f"{split} has {there} images, but data.{setting} is {wanted}: .*; data|data.{setting}=null takes"
    with pytest.raises(DataError, match=message):
        configured(folder, **{setting: wanted})
    configured(folder, **{setting: there})


def test_a_limit_draws_the_same_images_always_and_a_larger_one_keeps_them(folder):
    def drawn(limit):
        dataset = build(configured(folder, limit=limit), True, pixels)
        for i in range(limit):
            assert np.array_equal(dataset[i][0], np.asarray(read_image(dataset.name_of(i))))
        return [dataset.name_of(i) for i in range(len(dataset))]

    assert drawn(5) == drawn(5) == sorted(set(drawn(5)))
    assert len(drawn(5)) == 5
    assert set(drawn(5)) < set(drawn(9))
    assert drawn(9) != drawn(12)[:9]  # at random
    assert len(build(configured(folder, limit=3), False, pixels)) == 4  # validation has all
    with pytest.raises(DataError, match=r"data\.limit is 13, but .*train has only 12"):
        configured(folder, limit=13)
    with pytest.raises(DataError, match="limit is 0; it must be at least 1"):
        configured(folder, limit=0)


@pytest.mark.parametrize("name", ["digits", "cifar10"])
def test_counts_of_sets_that_are_always_the_same(name, tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(DataError, match="data.train_images is 3"):
        resolve(DataConfig(name, str(tmp_path), num_classes=10, train_images=3))
    with pytest.raises(DataError, match="data.limit is 60000, but .* has only"):
        resolve(DataConfig(name, str(tmp_path), num_classes=10, limit=60_000))


def test_synthetic_images():
    config = DataConfig("synthetic", img_size=32, train_images=1_281_167, val_images=70)
    train, val = (build(resolve(config), split, pixels) for split in (True, False))
    assert (len(train), len(val)) == (1_281_167, 70)
    assert (train[1_281_166][0].shape, train[1_281_166][0].dtype) == ((32, 32, 3), np.uint8)
    assert {train[i][1] for i in range(1000)} == set(range(1000))
    assert np.array_equal(train[5][0], build(config, True, pixels)[5][0])
    assert not np.array_equal(train[5][0], train[6][0])
    assert "5 of the synthetic images" in train.name_of(5)
    with pytest.raises(DataError, match=r"data\.val_images is null; give a number"):
        resolve(DataConfig("synthetic", train_images=10))
    assert len(build(resolve(DataConfig("synthetic", train_images=10, val_images=9, limit=3)), True, pixels)) == 3


def test_cifar10_as_torchvision_keeps_it(tmp_path, monkeypatch):
    where = tmp_path / "cifar-10-batches-py"
    where.mkdir()
    config = resolve(DataConfig("cifar10", str(tmp_path), num_classes=10))
    with pytest.raises(DataError, match=r"is not whole; unpack cifar-10-python.tar.gz again"):
        build(config, True, pixels)
    rng = np.random.default_rng(0)
    data = rng.integers(0, 256, (4, 3, 32, 32), dtype=np.uint8)
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        (where / name).write_bytes(pickle.dumps({"data": data.reshape(4, -1), "labels": [3, 1, 4, 1]}))
    (where / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    dataset = build(config, True, pixels)
    assert (len(dataset), dataset[4][1]) == (20, 3)
    assert np.array_equal(dataset[6][0], data[2].transpose(1, 2, 0))


def encoded(kind="JPEG", size=(64, 48), **settings):
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(file := io.BytesIO(), kind, **settings)
    return file.getvalue()


def huge_png():
    """Says that it has 60,000 x 60,000 pixels."""
    chunks = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0), b"IDAT" + zlib.compress(b"0")
    framed = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


BROKEN = {
    "empty": b"",
    "text": b"<html>404</html>",
    "cut JPEG": encoded()[:1500],
    "cut PNG": encoded("PNG")[:1500],
    "cut header": encoded()[:20],
    "PNG with zeros": encoded("PNG")[:400] + bytes(4000),
    "cut WebP": encoded("WEBP")[:300],
    "cut TIFF": encoded("TIFF")[:9000],
    "huge": huge_png(),
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN)
def test_a_broken_image_is_named_in_one_line(folder, data):
    path = folder / "train" / "class1" / "3.png"
    path.write_bytes(data)
    dataset = build(configured(folder), True, pixels)
    with pytest.raises(
        CorruptImage, match=rf"^{re.escape(str(path))} is not an image that can be read \(.+\)$"
    ) as error:
        dataset[9]
    assert " at 0x" not in str(error.value)
    assert dataset[8][1] == 1


def test_nonsense_beside_the_pixels_does_not_matter():
    exif = b"Exif\0\0MM\0*\xff\xff\xff\xff nonsense"
    with warnings.catch_warnings(action="error"):
        assert decode(encoded(exif=exif)).tobytes() == decode(encoded()).tobytes()
    for mode in ("L", "CMYK", "1"):
        Image.new(mode, (8, 8)).save(file := io.BytesIO(), "TIFF")
        assert decode(file.getvalue()).mode == "RGB"


def test_an_error_comes_through_a_worker_and_a_pickle(folder):
    (folder / "train" / "class0" / "0.png").write_bytes(b"")
    loader = iter(DataLoader(build(configured(folder), True, torch.tensor), num_workers=1))
    with pytest.raises(
        CorruptImage, match=r"^\S+class0/0.png is not an image that can be read \(of no known format\)$"
    ):
        next(loader)
    loader._shutdown_workers()  # at once; left to the garbage collector, it takes five seconds
    error = pickle.loads(pickle.dumps(CorruptImage("a.png is none")))
    assert (type(error), str(error)) == (CorruptImage, "a.png is none")


def test_images_that_are_gone_are_no_corrupt_ones(folder, monkeypatch):
    dataset = build(configured(folder), True, pixels)
    folder.rename(folder.with_name("elsewhere"))
    with pytest.raises(DataError, match=r"class0/0.png cannot be read \(No such file or directory\): are the images"):
        dataset[0]
    folder.with_name("elsewhere").rename(folder)
    for number in (errno.ESTALE, errno.EIO, errno.ENOTCONN, errno.EBADF):
        with monkeypatch.context() as patch, pytest.raises(DataError, match=os.strerror(number)) as error:
            patch.setattr(os, "fstat", Mock(side_effect=OSError(number, "")))
            dataset[0]
        assert not isinstance(error.value, CorruptImage)


def test_a_data_set_can_be_pickled(folder):
    dataset = build(configured(folder, limit=7), True, pixels)
    again = pickle.loads(pickle.dumps(dataset))
    assert all(np.array_equal(dataset[i][0], again[i][0]) for i in range(7))
    assert again.name_of(3) == dataset.name_of(3)
