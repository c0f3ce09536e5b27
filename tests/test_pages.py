"""What the pages of docs/ show: commands that there are, and code that runs or says why no test runs it."""

import importlib
import io
import re
import shlex
import sys
import tarfile
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
PAGES = {str(page.relative_to(ROOT)): page.read_text() for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]}
NOT_RUN = "<!-- not run by a test: "
RUN = {
    "README.md": "test_readme.py",
    "docs/checkpoints.md": "test_readme.py",
    "docs/run.md": "test_readme.py",
    "docs/results/equal-cost.md": "test_readme.py",
    "docs/tables.md": "test_readme.py",
    "docs/proxy.md": "test_plugins.py",
    "docs/space.md": "test_plugins.py",
    "docs/images.md": "test_plugins.py and here",
    "docs/results/network.md": "here",
}
"""Pages of which every block of Python is run, and by which test."""


def commands():
    """Every whole command on a page: in a block, indented, or within a line."""
    for page, text in PAGES.items():
        text = text.replace("\\\n", " ")
        inline = re.findall(r"`(python -m pipelines\.[^`]* [^`]*)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
        lines = re.findall(r"^(?:    )?(python -m pipelines\..* .*)$", text, re.MULTILINE)
        for command in map(" ".join, map(str.split, inline + lines)):
            words = shlex.split(command.partition(" # ")[0].partition(" && ")[0])
            name = words[2].partition(".")[2]
            if name != "script" and words[3:] not in (["..."], ["--help"], ["runs/RUN", "[RUN", "...]"]):
                yield pytest.param(name, [word.partition("|")[0] for word in words[3:]], id=f"{page}: {command[20:]}")


@pytest.mark.parametrize(("name", "arguments"), list(commands()))
def test_a_command_can_be_typed(name, arguments, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(f"pipelines.{name}")
    if name in ("correlate", "export", "latency", "report", "runs"):
        module.parse(arguments)
    elif name != "evaluate":  # which opens its checkpoint before anything else
        with pytest.raises(SystemExit) as end:
            module.main([*arguments, "--print-config"])
        assert not end.value.code, capsys.readouterr().err  # W&B makes a 0 of None


def test_commands_stand_apart_from_the_text():
    for page, text in PAGES.items():
        outside = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
        assert not re.findall(r"^(?:python -m|slurm/submit|pip install) .*$", outside, re.MULTILINE), page


def test_code_is_run_or_says_why_not():
    assert set(RUN) < set(PAGES)
    for page, text in PAGES.items():
        before = [part.rstrip() for part in text.split("```python\n")[:-1]]
        said = [part.rpartition("\n")[2].startswith(NOT_RUN) for part in before]
        assert not before or all(said) or (page in RUN and not any(said)), page


def test_the_space_is_as_large_as_the_page_says(capsys):
    page = PAGES["docs/results/network.md"]
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(compile(block, "network.md", "exec"), {})
    for line in capsys.readouterr().out.splitlines():
        size, cardinality, *_, share = line.split()
        assert re.search(rf"\| {size} \| {cardinality.replace('+', '')} \|.*\| {float(share) * 100:.0f} %", page), line


def test_tars_are_made_of_parquet(tmp_path, monkeypatch):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    block = next(b for b in re.findall(r"```python\n(.*?)```", PAGES["docs/images.md"], re.DOTALL) if "tarfile" in b)
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG")
    rows = [{"image": {"bytes": file.getvalue(), "path": None}, "label": label} for label in (3, 12)]
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    parquet.write_table(pyarrow.Table.from_pylist(rows), source / "train-0.parquet")
    monkeypatch.setattr(sys, "argv", ["convert.py", str(source), str(target)])
    exec(compile(block, "convert.py", "exec"), {})
    with tarfile.open(target / "train-0.tar") as tar:
        found = {member.name: tar.extractfile(member).read() for member in tar}
    assert found["000001.cls"] == b"12" and found["000000.jpg"] == file.getvalue() and len(found) == 4
