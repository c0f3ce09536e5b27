"""What is wrong with shards is said before training."""

import os
import sys
import tarfile
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from written import opened, write_folder, write_parquet, write_tars

from esformer.data.base import DataError


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


def file_of(name, content, **more):
    """A file in a tar: header and blocks."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for word, value in more.items():
        setattr(member, word, value)
    return member.tobuf(tarfile.GNU_FORMAT, errors="surrogateescape") + content.ljust(
        -(-len(content) // 512) * 512, b"\0"
    )


def member(ending, content, image=b"x"):
    """One more tar, of a single image with such a label."""
    return more_tar(file_of("z.png", image) + file_of(f"z.{ending}", content))


def more_tar(content):
    def write(images, root):
        (write_tars(root, images) / "train-0009.tar").write_bytes(content + bytes(1024))

    return write


def said_size(number, kind=b"0"):
    """A header that says how large its file is."""
    header = bytearray(file_of("z.png", b"", type=kind))
    header[124:136] = number.to_bytes(12, "big", signed=True) if number < 0 else b"\x80" + number.to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def many_rows(images, root):
    path = write_parquet(root, images) / "data" / "train-00001-of-00003.parquet"
    count = 100_000
    pq.write_table(pa.table({"image": pa.nulls(count, pa.binary()), "label": np.zeros(count, np.int64)}), path)


NUMBERS = [b"1" + b"0" * 30, b"1_0", "٣".encode(), b"9" * 5000, b"", b"1.0", b"0x1", b"1\0", b"9223372036854775807"]
LABELS = ["1e999", "NaN", "true", "1.5", '"1"', "9223372036854775808", "[1]", "null", "9" * 5000, "1000000000000"]
JSONS = [
    *(f'{{"label": {label}}}' for label in LABELS),
    "[" * 100_000,
    '{"label": 1, "x": ' + "[" * 100_000,
    "[1]",
    "1",
]
SIZES = [2**60, 2**33 - 1, 2**87, -1, -1024]
NO_NUMBER = r"train-0009.tar: z\.(cls|json) holds no class number but b'.*'; .cls is a number below 100,000, .json"
NO_TAR = r"train-0009.tar is cut short or no tar \(.*\); copy it again"

REFUSED = {
    **{f"cls {number[:9]!r}": (member("cls", number), NO_NUMBER) for number in NUMBERS},
    **{f"json {i}": (member("json", text.encode()), NO_NUMBER) for i, text in enumerate(JSONS)},
    **{f"size {size}": (more_tar(said_size(size) + bytes(512)), NO_TAR) for size in SIZES},
    **{f"long name {size}": (more_tar(said_size(size, b"L") + bytes(512)), NO_TAR) for size in SIZES},
    **{f"header {size}": (more_tar(said_size(size, b"x") + bytes(512)), NO_TAR) for size in SIZES},
    "names without end": (more_tar(file_of("z", b"x" * 10, type=b"L") * 3000), NO_TAR),
    "hard link": (more_tar(file_of("z.jpg", b"", type=b"1") + file_of("z.cls", b"1")), "z.jpg is a link, or sparse"),
    "link": (more_tar(file_of("z.jpg", b"", type=b"2") + file_of("z.cls", b"1")), "z.jpg is a link, or sparse"),
    "twice": (
        more_tar((file_of("z.jpg", b"x") + file_of("z.cls", b"1")) * 2),
        "z.jpg is there twice; each image",
    ),
    "novel": (member("json", b" " * 2**24 + b'{"label": 1}'), r"z.json has 16,777,228 bytes; it must have at most"),
    "many rows": (many_rows, r"says that it holds 100,000 images in [\d,]+ bytes; copy it again"),
    "uint64": (
        column("label", np.full(7, 2**64 - 1, np.uint64)),
        "has the number 18446744073709551615, but class",
    ),
    "int64": (
        column("label", [2**63 - 1] * 7),
        "has the number 9223372036854775807, but classes are numbered from 0",
    ),
    "booleans": (column("label", [True] * 7), "the column 'label' is bool, or has gaps"),
    "floats": (column("label", [1.0] * 7), "the column 'label' is double, or has gaps"),
    "text of bytes": (column("image", [{"bytes": "x"}] * 7), "the column 'image' is struct<bytes: string>; it must be"),
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


@pytest.mark.parametrize("kind", [b"L", b"x"])
def test_a_header_cannot_ask_for_more_memory_than_the_file_has(kind, images, tmp_path):
    more_tar(said_size(2**33 - 1, kind) + bytes(512))(images, tmp_path)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=NO_TAR):
            opened(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


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
