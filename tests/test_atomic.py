"""Files that are whole or not there, whatever ends their writing."""

from pathlib import Path

import pytest

from esformer.atomic import write_text
from esformer.files import FileError


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt, SystemExit, MemoryError])
@pytest.mark.parametrize("method", ["write_bytes", "replace"])
def test_what_ends_a_writing_leaves_the_old_file_alone(method, error, tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("old")
    right = getattr(Path, method)

    def ended(path, content):
        if method == "write_bytes":
            right(path, content[:1])
        raise error

    monkeypatch.setattr(Path, method, ended)
    with pytest.raises(FileError if error is OSError else error):
        write_text(tmp_path / "a.txt", "new")
    monkeypatch.undo()
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.txt", "old")]


def test_a_folder_in_the_way_leaves_no_temporary(tmp_path):
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(FileError, match="a.txt cannot be written: Is a directory"):
        write_text(tmp_path / "a.txt", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_file_is_replaced(tmp_path):
    for text in ("old", "new"):
        write_text(tmp_path / "a.txt", text)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.txt", "new")]
