"""What the README shows runs as it stands there."""

import re
from pathlib import Path

from pipelines.config import compose

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_python_blocks_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
    assert "3.6e+34 genotypes" in capsys.readouterr().out


def test_settings_exist():
    shell = re.sub(r"```.*?```", "", README, flags=re.DOTALL)
    settings = {s for s in re.findall(r"\b(?:[a-z]+\.)?[a-z_]+=[\w./-]+", shell) if "..." not in s}
    assert len(settings) > 5
    for setting in settings:
        compose("S0", overrides=[setting])


def test_files_exist():
    root = Path(__file__).parent.parent
    for name in re.findall(r"`((?:esformer|pipelines|callbacks|configs)/[\w./]*)`", README):
        assert (root / name).exists(), name
