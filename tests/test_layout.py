"""The house: arrows between files point one way, and no file is too long to read."""

import ast
import inspect
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from torch import nn

import esformer
from esformer.search.stage import search

ROOT = Path(__file__).parent.parent
TOP = ("esformer", "configs", "callbacks", "pipelines")
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for top in TOP
    for path in (ROOT / top).rglob("*.py")
}
ROOMS = (
    *("text errors version throttle plugins children files choices recipe guide genotype topology space".split()),
    *("data model proxies engine search benchmarks checkpoint training export plots report".split()),
)
"""Of the library, from below: a room may import those before it."""


def imports():
    """Every import of one of our modules by another, at the top of a file or within a function."""
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] in TOP:
                for alias in node.names:
                    name = f"{node.module}.{alias.name}"
                    yield module, name if name in MODULES else node.module


ARROWS = sorted({(module, imported) for module, imported in imports() if module != imported})


def circle(arrows):
    graph = {}
    for source, target in arrows:
        graph.setdefault(source, set()).add(target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return None


def room(module):
    parts = module.split(".")
    return ".".join(parts[: 2 if parts[0] in ("esformer", "pipelines") else 1])


def test_no_file_and_no_room_imports_itself_by_way_of_others():
    assert circle([("a", "b"), ("b", "a")]) and len(ARROWS) > 400
    assert circle(ARROWS) is None
    lazy = {"esformer"}  # `esformer.load` and the others are imported when they are first used
    rooms = {(room(a), room(b)) for a, b in ARROWS if not {room(a), room(b)} & lazy}
    assert circle([(a, b) for a, b in rooms if a != b]) is None


def test_the_library_knows_nothing_of_settings_and_commands():
    wrong = {
        "esformer": {"configs", "callbacks", "pipelines"},
        "configs": {"callbacks", "pipelines"},
        "callbacks": {"configs", "pipelines"},
        "pipelines": set(),
    }
    assert not [(a, b) for a, b in ARROWS if b.partition(".")[0] in wrong[a.partition(".")[0]]]


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_of_the_library_imports_only_what_is_below(room):
    below = set(ROOMS[: ROOMS.index(room) + 1])
    for module, imported in ARROWS:
        if module.split(".")[:2] == ["esformer", room] and imported.startswith("esformer."):
            assert imported.split(".")[1] in below, f"{module} imports {imported}"


def test_every_room_is_named_and_on_the_map():
    found = {module.split(".")[1] for module in MODULES if module.startswith("esformer.")}
    assert found == set(ROOMS)
    map_ = (ROOT / "CONTRIBUTING.md").read_text().partition("## Where things are")[2]
    small = {"errors", "text", "version", "throttle", "children", "files"}
    assert [room for room in found - small if f"`{room}" not in map_] == []


@pytest.mark.parametrize("module", MODULES)
def test_no_file_is_longer_than_a_person_reads_at_once(module):
    assert len(MODULES[module].read_text().splitlines()) <= 400


def test_public_functions_say_what_their_arguments_are():
    for name in esformer.__all__:
        made = search if name == "search" else getattr(esformer, name)
        parts = {name: made} if callable(made) else {}
        if inspect.isclass(made):  # torch's own methods are explained there
            parts |= {f"{name}.{part}": getattr(made, part) for part in vars(made) if not issubclass(made, nn.Module)}
        for place, part in parts.items():
            if not callable(part) or place.rpartition(".")[2].startswith("_"):
                continue
            arguments = [n for n in inspect.signature(part).parameters if n not in ("self", "kwargs")]
            said = inspect.getdoc(part)
            if name == "Schedule":  # each field has a text of its own below it
                continue
            assert not arguments or "Args:" in said, place
            missing = [n for n in arguments if not re.search(rf"^    (\w+, )*\*{{0,2}}{n}(, \w+)*:", said, re.M)]
            assert not missing, (place, missing)
