"""Files that anybody may have written can neither hang, exhaust memory nor end in anything but a sentence."""

import os
import time

import pytest

from esformer.files import DEEPEST, LARGEST, ContentError, FileError, parse_json, parse_yaml, read_text, whole_lines

BOMB = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefghijkl", "bcdefghijklm"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (BOMB, "aliases"),
        ("&a [*a]", "aliases"),
        ("!!python/object/apply:os.getcwd []", "tags"),
        ("[" * 5000, "nested too deeply"),
        ("- " * 5000, "nested too deeply"),
        ("a: 1\na: 2", "the key 'a' twice"),
        ("1: 2", "keys are words"),
        ("a: 1" + "0" * 6000, "not plain YAML"),
        ("a: [", "not plain YAML: line 1"),
        ("a: \0", "not plain YAML"),
    ],
)
def test_yaml_is_plain_or_refused(text, says):
    for plain in (False, True):
        if plain and (text[0] == "1" or "0000" in text):
            continue  # a number is text there
        with pytest.raises(ContentError, match=says):
            parse_yaml(text, plain)


def test_yaml_keeps_dates_and_what_is_read_plain_is_text():
    assert parse_yaml("a: 2024-11-24\nb: 8\n<<: x") == {"a": "2024-11-24", "b": 8, "<<": "x"}
    assert parse_yaml("a: [0010, ~, true, '8']", plain=True) == {"a": ["0010", "~", "true", "8"]}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[" * 100_000, "nested too deeply"),
        ("[" * (DEEPEST + 1) + "]" * (DEEPEST + 1), "nested too deeply"),
        ('{"a": NaN}', "a number that is nan"),
        ('{"a": [1e999]}', "a number that is inf"),
        ("1" * 5000, "not JSON"),
        ('{"a": 1, "a": 2}', "the key 'a' twice"),
        (b"\xff\xfe\x00", "not JSON"),
        ("", "not JSON"),
    ],
)
def test_json_is_finite_and_shallow_or_refused(text, says):
    with pytest.raises(ContentError, match=says):
        parse_json(text)


def test_only_small_ordinary_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with (tmp_path / "large").open("wb") as file:
        file.truncate(1 << 40)
    (tmp_path / "latin").write_bytes(b"\xff")
    said = {"pipe": "not a file", "large": f"more than {LARGEST:,} bytes", "latin": "UTF-8", "none": "No such file"}
    began = time.perf_counter()
    for name, says in {**said, ".": "not a file", "a\0b": "null byte", "x" * 300: "File name too long"}.items():
        with pytest.raises(FileError, match=says):
            read_text(tmp_path / name)
    with pytest.raises(FileError, match="not a file"):
        read_text("/dev/zero")
    assert time.perf_counter() - began < 1


@pytest.mark.parametrize("tail", [b"", b"x", b"\0" * (3 << 20)], ids=len)
def test_a_torn_tail_of_any_length_is_left_out(tmp_path, tail):
    (tmp_path / "f").write_bytes(b"one\ntwo\n" + tail)
    assert list(whole_lines(tmp_path / "f", 100)) == [(1, b"one\n", 4), (2, b"two\n", 8)]


def test_a_line_that_is_too_long_is_named(tmp_path):
    (tmp_path / "f").write_bytes(b"one\n" + b"x" * 5000 + b"\nthree\n")
    with pytest.raises(ContentError, match="line 2 is longer than 100 bytes"):
        list(whole_lines(tmp_path / "f", 100))
