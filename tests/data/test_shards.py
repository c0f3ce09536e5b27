"""Shards give the same images and classes as the folders from which they were made; what is wrong with them is said."""

import io
import logging
import os
import pickle
import re
import stat
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from written import contents, opened, to_tensor, write_folder, write_parquet, write_tars

from esformer.data import shards
from esformer.data.base import CorruptImage, DataError
from esformer.data.sources import find_shards

SAMPLE = Path(__file__).parents[3] / "shared" / "data" / "images" / "imagenet-sample.tar"


WRITERS = {"tars": write_tars, "parquet": write_parquet}
every_kind = pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)


LAYOUTS = {
    "beside each other": (write_tars, {}),
    "in folders": (write_tars, {"names": ("train/{}.tar", "val/{}.tar")}),
    "timm's": (write_tars, {"names": ("imagenet1k-train-{}.tar", "imagenet1k-validation-{}.tar"), "label": "json"}),
    "Hugging Face's": (write_parquet, {}),
    "parquet in folders": (write_parquet, {"names": ("train/{}.parquet", "test/{}.parquet"), "plain": True}),
    "parquet beside": (write_parquet, {"names": ("train-{}.parquet", "val-{}.parquet")}),
}


@pytest.mark.parametrize(("write", "settings"), LAYOUTS.values(), ids=LAYOUTS)
def test_shards_give_what_folders_give(write, settings, images, tmp_path):
    root, folder = write(tmp_path / "shards", images, **settings), write_folder(tmp_path / "folder", images)
    for train in (True, False):
        assert contents(opened(root, train)) == contents(opened(folder, train))
    dataset = opened(root)
    for i, (name, file, label) in enumerate(images[0]):  # in the order of the shards
        assert np.array_equal(dataset[i][0], np.asarray(Image.open(io.BytesIO(file)).convert("RGB")))
        assert dataset[i][1] == label
        where = f"photos/{name}" if write is write_tars else f"row {i % 7 % 3} of row group {i % 7 // 3}"
        assert re.fullmatch(rf".*train.*{i // 7}.*: {where}", dataset.name_of(i))
    some = opened(root, limit=5)
    assert [some[i][0].tobytes() for i in range(5)] == [
        dataset[int(i)][0].tobytes() for i in sorted(np.random.default_rng(0).permutation(18)[:5])
    ]


@every_kind
def test_workers_and_pickles_read_what_this_process_reads(write, images, tmp_path):
    dataset = opened(write(tmp_path, images), transform=to_tensor)
    here = [dataset[i][0] for i in range(18)]  # files are open when the workers are forked
    loader = DataLoader(dataset, batch_size=1, num_workers=2)
    for again in ((item[0][0] for item in loader), (pickle.loads(pickle.dumps(dataset))[i][0] for i in range(18))):
        assert all(torch.equal(a, b) for a, b in zip(here, again, strict=True))


def test_a_forked_process_opens_files_of_its_own():
    made = shards.PerProcess(lambda key: os.getpid(), most=2)
    assert made("file") == os.getpid()
    if (child := os.fork()) == 0:
        os._exit(made("file") != os.getpid())
    assert os.waitpid(child, 0)[1] == 0


def test_what_was_used_last_is_kept():
    asked = []
    made = shards.PerProcess(asked.append, most=2)
    for key in "abacab":
        made(key)
    assert asked == list("abcb")


def test_large_row_groups_are_warned_of(images, tmp_path, monkeypatch, caplog):
    root = write_parquet(tmp_path, images)
    opened(root)
    assert not caplog.messages
    monkeypatch.setattr("esformer.data.parquet.LARGE", 2)
    opened(root)
    assert "of up to 3 images; WebDataset tars would be faster" in caplog.messages[0]


def test_no_more_files_are_open_than_may_be(images, tmp_path, monkeypatch):
    monkeypatch.setattr("esformer.data.tars.open_files", lambda: 2)
    root = write_tars(tmp_path, images, each=1)
    before = len(list(Path("/proc/self/fd").iterdir()))
    dataset = opened(root)
    assert contents(dataset) == contents(opened(write_folder(tmp_path / "folder", images)))
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 2


@every_kind
def test_the_index_is_made_once_and_again_when_a_shard_changes(write, images, tmp_path, monkeypatch, caplog):
    def looked():
        caplog.clear()
        with caplog.at_level(logging.INFO):
            found = opened(root)
        return len(found), sum("indexing" in record.message for record in caplog.records)

    root = write(tmp_path / "shards", images)
    assert looked() == (18, 2)
    assert looked() == (18, 0)
    shard = find_shards(root, True, ".tar" if write is write_tars else ".parquet")[0]
    indices = list(shard.parent.glob(".esformer-index-*.safetensors"))
    assert [stat.S_IMODE(index.stat().st_mode) for index in indices] == [0o644] * 2  # others may use them
    assert not list((tmp_path / "cache").glob("*"))
    os.utime(shard, ns=(0, shard.stat().st_mtime_ns + 1))
    assert looked() == (18, 1)
    assert looked() == (18, 0)
    write(root, ([*images[0], images[0][0]], images[1]))  # one more, in another shard
    assert looked()[0] == 19
    for index in shard.parent.glob(".esformer-index-*.safetensors"):
        index.write_bytes(index.read_bytes()[:200])
    assert looked() == (19, 2)
    assert looked() == (19, 0)
    monkeypatch.setattr(shards, "VERSION", 3)
    assert looked() == (19, 2)


def test_where_shards_cannot_be_written_the_index_lies_in_the_users_cache(images, tmp_path, monkeypatch, caplog):
    right = Path.open
    refused = []

    def refusing(path, *mode):
        if path.parent in refused and mode == ("xb",):
            raise PermissionError(13, "Permission denied")
        return right(path, *mode)

    monkeypatch.setattr(Path, "open", refusing)
    root = write_tars(tmp_path / "shards", images)
    refused.append(root)
    for _ in range(2):
        assert len(opened(root)) == 18
    assert len(list((tmp_path / "cache" / "esformer").iterdir())) == 2
    assert not list(root.glob(".*"))
    refused.append(tmp_path / "cache" / "esformer")
    for index in (tmp_path / "cache" / "esformer").iterdir():
        index.unlink()
    assert len(opened(root)) == 18
    assert "could be written nowhere" in caplog.text


def test_half_an_index_is_never_left(images, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    root = write_tars(tmp_path / "shards", images)
    assert len(opened(root)) == 18
    assert not [path for path in tmp_path.rglob("*") if "esformer-" in path.name]


def broken(images, file, at=4):
    train = [(name, file if i == at else other, label) for i, (name, other, label) in enumerate(images[0])]
    return train, images[1]


@every_kind
def test_a_broken_image_is_named(write, images, tmp_path):
    dataset = opened(write(tmp_path, broken(images, images[0][4][1][:150])))
    with pytest.raises(
        CorruptImage, match=rf"^{re.escape(dataset.name_of(4))} is not an image that can be read \(.*\)$"
    ):
        dataset[4]
    assert contents_of(dataset, set(range(18)) - {4}) == contents_of(
        opened(write(tmp_path / "whole", images)), set(range(18)) - {4}
    )


def contents_of(dataset, indices):
    return [dataset[i][0].tobytes() for i in sorted(indices)]


def test_a_row_without_bytes_is_one_broken_image(images, tmp_path):
    dataset = opened(write_parquet(tmp_path, broken(images, None)))
    with pytest.raises(CorruptImage, match="row 1 of row group 1 holds no bytes"):
        dataset[4]


def test_a_broken_row_group_is_named_image_by_image(images, tmp_path):
    root = write_parquet(tmp_path, images)
    path = find_shards(root, True, ".parquet")[0]
    metadata = pq.ParquetFile(path).metadata.row_group(1).column(0)
    data = bytearray(path.read_bytes())
    start = metadata.dictionary_page_offset or metadata.data_page_offset
    data[start : start + metadata.total_compressed_size] = b"\xff" * metadata.total_compressed_size
    path.write_bytes(data)
    dataset = opened(root)
    for i in (3, 5):
        with pytest.raises(CorruptImage, match=rf"row {i - 3} of row group 1 cannot be read, nor can its row group"):
            dataset[i]
    assert dataset[2][1] == images[0][2][2]
    assert dataset[6][1] == images[0][6][2]


@every_kind
def test_shards_that_are_gone_are_no_broken_images(write, images, tmp_path, monkeypatch):
    root = write(tmp_path / "shards", images)
    dataset = opened(root)
    root.rename(tmp_path / "elsewhere")
    with pytest.raises(
        DataError, match=r"train-\S+ cannot be read \(No such file or directory\): are the images"
    ) as error:
        dataset[0]
    assert not isinstance(error.value, CorruptImage)
    assert "train-" in dataset.name_of(0)


def test_a_file_system_that_gives_less_than_it_is_asked_for(images, tmp_path, monkeypatch):
    dataset = opened(write_tars(tmp_path, images))
    whole, pread = contents(dataset), os.pread
    monkeypatch.setattr(os, "pread", lambda file, size, offset: pread(file, min(size, 100), offset))
    assert contents(dataset) == whole


def test_a_file_system_that_goes_away_while_files_are_open(images, tmp_path, monkeypatch):
    dataset = opened(write_tars(tmp_path, images))
    dataset[0]
    monkeypatch.setattr(os, "pread", lambda *_: (_ for _ in ()).throw(OSError(116, "Stale file handle")))
    with pytest.raises(DataError, match="Stale file handle") as error:
        dataset[0]
    assert not isinstance(error.value, CorruptImage)
    assert "at byte" in dataset.name_of(0)


def test_a_tar_that_shrinks_while_it_is_read(images, tmp_path):
    dataset = opened(write_tars(tmp_path, images))
    os.truncate(tmp_path / "train-0000.tar", 600)
    with pytest.raises(DataError, match=r"train-0000.tar ends before byte \d+; it was longer") as error:
        dataset[0]
    assert not isinstance(error.value, CorruptImage)


@pytest.mark.skipif(not SAMPLE.exists(), reason="needs ../shared/data")
def test_photographs(tmp_path):
    with tarfile.open(SAMPLE) as tar:
        files = [(m.name, tar.extractfile(m).read()) for m in (tar.next() for _ in range(61)) if m.isfile()]
    photos = [(f"{i:03d}.jpg", file, i % 3) for i, (_, file) in enumerate(files)]
    split = photos[:20], photos[20:]
    expected = contents(opened(write_folder(tmp_path / "folder", split)))
    assert contents(opened(write_tars(tmp_path / "tars", split))) == expected
    assert contents(opened(write_parquet(tmp_path / "parquet", split))) == expected
