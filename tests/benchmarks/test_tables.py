import gzip

import pytest

from esformer.benchmarks.base import BenchmarkError, Entry
from esformer.benchmarks.tables import entries, read_csv

TEXT = 'arch,acc,params\nx,90.5,10\n\n"y,y",0,20\n'


def letters(text):
    if not text.replace(",", "").isalpha():
        raise BenchmarkError(f"{text!r} must be letters")
    return text.upper()


def read(path):
    return entries(path, read_csv(path, "arch", "acc", "params"), letters)


@pytest.mark.parametrize(
    "encode", [str.encode, lambda text: gzip.compress(text.encode()), lambda t: t.encode("utf-8-sig")]
)
def test_plain_and_gzipped_whatever_the_name(tmp_path, encode):
    path = tmp_path / "table"
    path.write_bytes(encode(TEXT))
    assert read(path) == [Entry("X", 90.5, 10), Entry("Y,Y", 0.0, 20)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no column arch, acc, params"),
        ("arch,acc\n", "no column params"),
        ("arch,acc,params\n", "no architecture"),
        ("arch,acc,params\nx,1,1\ny,1\n", "line 3 has 2 columns"),
        ("arch,acc,params\nx,1,1\n7,1,1\n", "architecture 2: '7' must be letters"),
        ("arch,acc,params\nx,high,1\n", "'high'"),
        ("arch,acc,params\nx,1,1.5\n", "'1.5'"),
        ("arch,acc,params\nx,nan,1\n", "percent"),
        ("arch,acc,params\nx,101,1\n", "percent"),
        ("arch,acc,params\nx,-1,1\n", "percent"),
        ("arch,acc,params\nx,1,1\nX,2,1\n", "twice"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, refused, text, words):
    path = tmp_path / "table.csv"
    path.write_text(text)
    refused(lambda: read(path), str(path), words)


DAMAGED = {
    "not text": b"\xff\xfe\x00",
    "not gzip": b"\x1f\x8b junk",
    "cut off": gzip.compress(TEXT.encode())[:-9],
    "garbled": gzip.compress(b"")[:10] + b"\xff" * 30,
    "endless": b'"' + b"x" * 200_000,
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_files(tmp_path, refused, kind):
    path = tmp_path / "table.csv"
    path.write_bytes(DAMAGED[kind])
    refused(lambda: read(path), str(path))
    refused(lambda: read(tmp_path), "directory")
