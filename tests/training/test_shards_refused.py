"""What is wrong with shards is said before training."""

import os
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from written import opened, write_folder, write_parquet, write_tars

from esformer.training.datasets import DataError


def cut(images, root):
    path = write_tars(root, images) / "train-0001.tar"
    os.truncate(path, path.stat().st_size // 2 // 512 * 512)


def zeroed(images, root):
    path = write_tars(root, images) / "train-0001.tar"
    data = bytearray(path.read_bytes())
    data[2048:2560] = b"x" * 512
    path.write_bytes(data)


def half(images, root):
    path = write_parquet(root, images) / "data" / "train-00001-of-00003.parquet"
    os.truncate(path, path.stat().st_size // 2)


def column(name, values):
    def write(images, root):
        path = write_parquet(root, images) / "data" / "train-00001-of-00003.parquet"
        whole = pq.read_table(path)
        new = whole.drop_columns(name)
        pq.write_table(new if values is None else new.append_column(name, pa.array(values)), path)

    return write


def labelled(change):
    def write(images, root):
        write_tars(root, [[(name, file, change(label)) for name, file, label in split] for split in images])

    return write


def only(pattern):
    def write(images, root):
        for path in write_tars(root, images).glob(pattern):
            path.unlink()

    return write


def text_labels(images, root):
    write_tars(root, [[(name, file, "cat") for name, file, _ in split] for split in images])


def no_labels(images, root):
    write_tars(root, images, label="txt")


def two_kinds(images, root):
    write_tars(root, images)
    write_folder(root, images)


def not_in_validation(images, root):
    write_tars(root, (images[0], [image for image in images[1] if image[2] != 1]))


REFUSED = {
    "cut tar": (cut, r"train-0001.tar is cut short or no tar \(.*\); copy it again"),
    "broken header": (zeroed, r"train-0001.tar is cut short or no tar \(no header at byte 2048\)"),
    "text labels": (text_labels, r"train-0000.tar: photos/000.cls holds no class number but b'cat'"),
    "no labels": (
        no_labels,
        r"train-0000.tar: photos/000.jpg has no label; it needs a file with the same name and .cls",
    ),
    "no validation": (only("val*"), r"has training shards but no \*.tar with val or validation in its name"),
    "no training": (only("train*"), r"has validation shards but no \*.tar with train in its name"),
    "nothing": (only("*"), r"must hold the folders train and val, .* or shards: .tar or .parquet"),
    "two kinds": (two_kinds, r"holds class folders and WebDataset tars; it must hold images of one kind"),
    "labels from 1": (labelled(lambda label: label + 1), r"labels are from 1 to 3, but no image has the label 0"),
    "gap": (labelled(lambda label: label * 2), r"labels are from 0 to 4, but no image has the label 1; "),
    "hidden labels": (labelled(lambda label: -1), r"images have the label -1, as test images without labels do"),
    "odd classes": (not_in_validation, r"\(validation shards\): labels are from 0 to 2, but no image has the label 1"),
    "half a file": (half, r"train-00001-of-00003.parquet is cut short or no Parquet file \(.*\); copy it again"),
    "no column label": (column("label", None), r"parquet has no column 'label'; it has image"),
    "no column image": (column("image", None), r"parquet has no column 'image'; it has label"),
    "text column": (column("label", list("abcdefg")), r"the column 'label' is string, or has gaps; it must be class"),
    "gaps": (column("label", [0, None, 2, 1, 0, 0, 0]), r"the column 'label' is int64, or has gaps"),
    "paths": (column("image", list("abcdefg")), r"the column 'image' is string; it must be the bytes of image files"),
}


@pytest.mark.parametrize(("spoil", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_wrong_is_said_before_training(spoil, message, images, tmp_path):
    spoil(images, tmp_path)
    with pytest.raises(DataError, match=message) as error:
        opened(tmp_path)
    assert "\n" not in str(error.value)


def test_classes_and_counts_of_shards(images, tmp_path):
    root = write_tars(tmp_path, images)
    assert opened(root, num_classes=3, train_images=18, val_images=6)
    with pytest.raises(DataError, match=r"\(training shards\) has 3 classes, but data.num_classes is 1000"):
        opened(root, num_classes=1000)
    with pytest.raises(DataError, match=r"\(validation shards\) has 6 images, but data.val_images is 50000"):
        opened(root, val_images=50_000)
    two = tmp_path / "two"
    write_tars(two, (images[0], [image for image in images[1] if image[2] != 2]))
    with pytest.raises(DataError, match=r"\(validation shards\) have different classes: '2' is in only one of them"):
        opened(two)


def test_imagenets_own_archives_are_no_shards(images, tmp_path):
    root = write_folder(tmp_path, images)
    for name in (
        "ILSVRC2012_img_train.tar",
        "ILSVRC2012_img_val.tar",
        "train/n01440764.tar",
        ".train-hidden.tar",
        "interval.tar",
    ):
        (root / name).touch()
    assert len(opened(root)) == 18


def test_without_pyarrow_it_is_said_how_to_install_it(images, tmp_path, monkeypatch):
    root = write_parquet(tmp_path, images)
    for name in [name for name in sys.modules if name.startswith("pyarrow")]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(DataError, match="are Parquet files, which pyarrow reads: pip install pyarrow$"):
        opened(root)
