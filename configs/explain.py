"""Every setting with its type, default and explanation, read from the dataclasses of the schema."""

import ast
import inspect
import textwrap
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

from configs.schema import Config

SECTIONS_WITH_FILES = ("data", "search", "recipe")
"""Those that take a named choice, such as `data=cifar10`."""
FOLDER = Path(str(files("configs")))


@dataclass(frozen=True)
class Setting:
    """One field of the configuration, for help, for checking keys and for reading values."""

    key: str
    type: str
    default: Any
    explanation: str
    kind: Any = str
    """The annotation of the field."""


@cache
def settings(kind: type = Config, prefix: str = "") -> tuple[Setting, ...]:
    """Every setting there is, in order, with the explanation that stands below its field."""
    explained = _explanations(kind)
    found: list[Setting] = []
    for f in fields(kind):
        default = f.default_factory() if f.default_factory is not MISSING else f.default
        if is_dataclass(default):
            found += settings(type(default), f"{prefix}{f.name}.")  # type: ignore[arg-type]
        else:
            name = f.type.__name__ if type(f.type) is type else str(f.type)
            found.append(Setting(prefix + f.name, name, default, explained.get(f.name, ""), f.type))
    return tuple(found)


def _explanations(kind: type) -> dict[str, str]:
    """The string below each field of a dataclass and of those that it extends."""
    explained: dict[str, str] = {}
    for base in reversed([b for b in kind.__mro__ if is_dataclass(b)]):
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body  # type: ignore[attr-defined]
        for statement, below in pairwise(body):
            if isinstance(statement, ast.AnnAssign) and isinstance(below, ast.Expr):
                text = ast.literal_eval(below.value)
                explained[statement.target.id] = " ".join(text.split())  # type: ignore[union-attr]
    return explained


def choices(section: str) -> list[str]:
    """The named choices of a section, sorted: a file each."""
    return sorted(path.stem for path in (FOLDER / section).glob("*.yaml"))
