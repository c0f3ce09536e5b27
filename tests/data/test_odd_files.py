"""Whatever lies among the images: one of them is skipped and named, or one sentence says what is wrong."""

import os
import shutil
import signal
import sys
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from PIL import Image
from written import opened, write_folder

from esformer.data import sources
from esformer.data.base import CorruptImage, DataError
from esformer.data.datasets import DataConfig, resolve
from esformer.data.images import read_image
from esformer.data.sources import Folder


@contextmanager
def within(seconds):
    """A hang is an error."""
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it hangs"))
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)


def link(target, path):
    path.symlink_to(target)


def sparse(path):
    path.touch()
    os.truncate(path, 2**42)


def folder_of_an_image(path):
    path.mkdir()
    (path / "1.jpg").touch()


ODD = {
    "link to nowhere": (
        lambda path: path.symlink_to("/nowhere/x.jpg"),
        r"cannot be read \(No such file or directory\)",
    ),
    "link in a circle": (
        lambda path: path.symlink_to(path.name),
        r"cannot be read \(Too many levels of symbolic links\)",
    ),
    "link through a file": (partial(link, "000.jpg/x.jpg"), r"cannot be read \(No.*"),
    "folder": (folder_of_an_image, r"cannot be read \(Is a directory\)"),
    "pipe": (os.mkfifo, "is no file but a device or a pipe"),
    "device": (partial(link, "/dev/zero"), "is no file but a device or a pipe"),
    "terabytes": (sparse, r"has 4,398,046,511,104 bytes; no image has"),
    "slim": (lambda path: Image.new("L", (3, 3000)).save(path), r"\(3 x 3,000 pixels, one side more than 100 times"),
}


@pytest.mark.parametrize(("make", "message"), ODD.values(), ids=ODD)
def test_an_odd_file_is_one_corrupt_image(make, message, images, tmp_path):
    folder = write_folder(tmp_path, images) / "train" / "0"
    make(folder / "zzz.jpg")
    dataset = opened(tmp_path)
    index = next(i for i in range(19) if dataset.name_of(i).endswith("zzz.jpg"))
    with within(20), pytest.raises(CorruptImage, match=rf"^{folder}/zzz.jpg .*{message}"):
        dataset[index]
    with pytest.raises(CorruptImage, match=message):
        read_image(str(folder / "zzz.jpg"))
    assert len([dataset[i] for i in range(19) if i != index]) == 18


def test_an_image_that_is_deleted_or_forbidden_is_one_if_its_folder_is_there(images, tmp_path, monkeypatch):
    dataset = opened(write_folder(tmp_path, images))
    Path(dataset.name_of(3)).unlink()
    with pytest.raises(CorruptImage, match=r"cannot be read \(No such file or directory\)$"):
        dataset[3]
    monkeypatch.setattr(os, "open", lambda *_: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    with pytest.raises(CorruptImage, match=r"cannot be read \(Permission denied\)$"):
        dataset[2]
    monkeypatch.setattr(os, "access", lambda *_: False)  # nor may its folder be read
    with pytest.raises(DataError, match=r"cannot be read \(Permission denied\): may you read it\?") as error:
        dataset[2]
    assert not isinstance(error.value, CorruptImage)


@pytest.mark.parametrize("target", [".", "..", "../1/../0", "../1/back"])
def test_links_that_lead_round_and_round(target, images, tmp_path):
    folder = write_folder(tmp_path, images) / "train" / "0"
    (folder.parent / "1" / "back").symlink_to("../0")
    (folder / "loop").symlink_to(target)
    with within(20), pytest.raises(DataError, match=r"leads to the same folder as \S+: remove the link, or its images"):
        opened(tmp_path)


def test_links_to_other_folders_are_followed(images, tmp_path):
    root = write_folder(tmp_path / "images", images)
    (root / "train" / "0").rename(tmp_path / "elsewhere")
    (root / "train" / "0").symlink_to(tmp_path / "elsewhere")
    (root / "train" / "1" / "more").symlink_to(tmp_path / "elsewhere")
    (root / "train" / "nowhere").symlink_to("/nowhere")
    (root / "train" / "circle").symlink_to("circle")
    zeros = sum(label == 0 for *_, label in images[0])
    assert len(opened(root)) == 18 + zeros


def test_folders_deeper_than_pythons_stack(images, tmp_path):
    deep = write_folder(tmp_path, images) / "train" / "0" / ("d/" * 300)
    deep.mkdir(parents=True)
    shutil.copy(tmp_path / "train" / "0" / "000.jpg", deep)
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(250)  # 1000 such folders take seconds
    try:
        assert len(sources._images_in(tmp_path / "train" / "0")) == 1 + sum(label == 0 for *_, label in images[0])
    finally:
        sys.setrecursionlimit(limit)


def test_names_that_are_not_utf8(images, tmp_path):
    folder = write_folder(tmp_path, images) / "train" / "0"
    odd = folder / os.fsdecode(b"\xff\n\x1b[31m.jpg")
    shutil.copy(folder / "000.jpg", odd)
    dataset = opened(tmp_path)
    index = next(i for i in range(19) if dataset.name_of(i) == f"{folder}/\\udcff\\n\\x1b[31m.jpg")
    assert dataset[index][1] == 0
    odd.write_bytes(b"nothing")
    with pytest.raises(CorruptImage) as error:
        dataset[index]
    assert str(error.value).encode().decode().isprintable()
    for split in ("train", "val"):
        shutil.copytree(tmp_path / split / "1", tmp_path / split / os.fsdecode(b"c\xff"))
    with pytest.raises(DataError, match=r"train has a class folder whose name is not UTF-8: 'c\\udcff'; rename it"):
        opened(tmp_path)
    (tmp_path / "moved").mkdir()
    root = (tmp_path / "moved").rename(tmp_path / os.fsdecode(b"root\xff"))
    with pytest.raises(DataError, match=r"data.root is .*root\\udcff, which is not UTF-8; rename the folder"):
        opened(root)


@pytest.mark.parametrize("root", ["x" * 300, "x/" * 3000, "nul\0"])
def test_roots_that_can_be_no_folder(root):
    with pytest.raises(DataError, match="data.root is .*which is not a folder"):
        resolve(DataConfig("folder", root, num_classes=None))
    with pytest.raises(DataError, match="which is not a folder"):
        resolve(DataConfig("cifar10", root, num_classes=10))


def test_one_long_name_costs_no_more_memory_than_it_has(images, tmp_path):
    folder = write_folder(tmp_path, images) / "train" / "0"
    long = folder / ("d" * 200) / ("e" * 200)
    long.mkdir(parents=True)
    shutil.copy(folder / "000.jpg", long)
    found = Folder(tmp_path / "train")
    assert len(found) == 19
    assert len(found.names) < 1000
    assert sorted(path for path, _ in found.samples) == sorted(map(str, (tmp_path / "train").rglob("*.*")))


@pytest.mark.parametrize("ending", [".tar", ".parquet"])
@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, partial(link, "/dev/zero")])
def test_shards_that_are_no_files(make, ending, tmp_path):
    for split in ("train", "val"):
        make(tmp_path / f"{split}-0{ending}")
    with within(20), pytest.raises(DataError, match=rf"train-0{ending} is no file; move it elsewhere"):
        opened(tmp_path)
    assert sources.kind_of(tmp_path) == ending
