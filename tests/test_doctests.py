"""The examples in docstrings are true, and every name that people use has one."""

import doctest
from importlib import import_module
from pathlib import Path

import pytest

import esformer
from esformer import proxies
from esformer.data import base

ROOT = Path(__file__).parent.parent
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for room in ("esformer", "callbacks", "configs", "pipelines")
    for path in sorted((ROOT / room).rglob("*.py"))
    if ">>> " in path.read_text()
]


@pytest.mark.parametrize("module", MODULES)
def test_examples_are_true(module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(proxies, "_PROXIES", proxies._PROXIES.copy())
    monkeypatch.setattr(base, "_OPENERS", base._OPENERS.copy())
    found = doctest.testmod(import_module(module), optionflags=doctest.ELLIPSIS)
    assert found.attempted > 0 == found.failed


@pytest.mark.parametrize("name", sorted({*esformer.__all__} - {"Cost"}))  # which `cost` gives
def test_a_public_name_has_an_example(name):
    assert ">>> " in getattr(esformer, name).__doc__
