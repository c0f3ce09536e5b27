"""Files that are whole or not there, whatever ends their writing."""

from pathlib import Path

import pytest

from esformer.files import FileError, write_text


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt, SystemExit, MemoryError])
@pytest.mark.parametrize("method", ["open", "replace"])
def test_what_ends_a_writing_leaves_the_old_file_alone(method, error, tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("old")
    right = getattr(Path, method)

    def ended(path, argument):
        if method == "open":
            with right(path, argument) as file:
                file.write(b"n")
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


LIMITED = """
import resource, signal, sys
from pathlib import Path
from esformer.files import atomic_output, write_bytes
from esformer.errors import ESFormerError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
folder = Path(sys.argv[1])
for write in (lambda path: path.write_bytes(b"x" * 9999), lambda path: write_bytes(path, b"x" * 9999)):
    try:
        with atomic_output(folder / "a.onnx") as place:
            write(place / "a.onnx")
    except ESFormerError as error:
        print(error)
try:
    write_bytes(folder / "b.json", b"x" * 9999)
except ESFormerError as error:
    print(error)
print(list(folder.iterdir()))
"""


def test_a_full_disk_is_a_sentence_with_the_files_name(fresh_process, tmp_path):
    lines = fresh_process("-c", LIMITED, tmp_path).splitlines()
    assert lines[0] == lines[1] == f"{tmp_path}/a.onnx cannot be written: File too large"
    assert lines[2] == f"{tmp_path}/b.json cannot be written: File too large"
    assert lines[3] == "[]"
