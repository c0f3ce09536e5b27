"""What a person types for a setting, as a value of the type that its field declares."""

import math
import os
import re
from types import NoneType
from typing import Any, get_args, get_origin

import yaml

from esformer.errors import ESFormerError
from esformer.files import parse_yaml

LONGEST = 4096
"""Characters of a path; Linux takes no longer ones."""
LONGEST_TEXT = 500
"""Characters of other text, which messages repeat as it is."""
LONGEST_NAME = 255
"""Bytes of the name of a file."""
BEYOND = 2**63
"""No whole number that means something is as large."""
NULLS = ("null", "Null", "NULL", "~")
"""YAML's words for nothing. Where text may stand, `~` is text."""
TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")
"""What neither YAML nor a terminal shows; bytes that are no UTF-8 are surrogates in Python's arguments."""


class ValueTypeError(ESFormerError):
    """A value that is not of the type of its setting: what it is, and what it must be."""


def convert(raw: Any, kind: Any, is_path: bool = False) -> Any:
    """A value of the declared type.

    Text stays as it is, to the letter; only `null` is nothing, where nothing may be. Numbers and booleans are read as
    in YAML, but for what people and YAML 1.1 take for different numbers (0010 is 8 there, and 12:30 is 750).

    Args:
        raw: what was typed; or a list of that, or a default.
        kind: the annotation: str, int, float, bool, a list of one of them, a union of some of them, or None.
        is_path: whether `~` in front is the home.

    Raises:
        ValueTypeError: the rest of a sentence that begins with the name of the setting.
    """
    kinds = get_args(kind) if get_origin(kind) not in (list, None) else (kind,)
    if raw is None or (raw in (NULLS[:1] if str in kinds else NULLS) if isinstance(raw, str) else False):
        if NoneType in kinds:
            return None
        raise ValueTypeError(f"is null; it must be {describe(kind)}")
    if isinstance(raw, str) and not raw:
        raise ValueTypeError(f"is empty; it must be {describe(kind)}")
    for one in sorted(kinds, key=lambda one: one is str):  # what is no number may still be text
        value = _convert_to(one, raw, is_path)
        if value is not None:
            return value
    raise ValueTypeError(f"is {show(raw)}; it must be {describe(kind)}")


def _convert_to(kind: Any, raw: Any, is_path: bool) -> Any:
    """The value; None if it is not of this type."""
    if get_origin(kind) is list:
        return _list(raw, get_args(kind)[0])
    if kind is bool and isinstance(raw, str):
        return True if raw.lower() in TRUE else False if raw.lower() in FALSE else None
    if kind is int and isinstance(raw, str):
        return _whole(raw)
    if kind is float and isinstance(raw, str):
        return _real(raw)
    if kind is str and isinstance(raw, str):
        return path_text(raw) if is_path else text(raw)
    if kind is float and type(raw) is int:
        return float(raw)
    return raw if kind in (str, int, float, bool) and type(raw) is kind else None  # a default


def text(raw: str, longest: int = LONGEST_TEXT) -> str:
    """What was typed, if it is text that a file and a terminal can show."""
    if not raw:
        raise ValueTypeError("is empty; it must be text")
    if found := UNPRINTABLE.search(raw):
        what = "a byte that is not UTF-8" if "\ud800" <= found[0] <= "\udfff" else "a control character"
        raise ValueTypeError(f"is {show(raw)}; it holds {what}; leave it out")
    if len(raw) > longest:
        raise ValueTypeError(f"is {show(raw)}; it has {len(raw):,} characters, and may have at most {longest:,}")
    return raw


def path_text(raw: str) -> str:
    """The same of a path: `~` in front is the home, and the rest stays."""
    if any(len(os.fsencode(name)) > LONGEST_NAME for name in raw.split("/")):
        raise ValueTypeError(f"is {show(raw)}; the name of a file or folder has at most {LONGEST_NAME} bytes")
    path = os.path.expanduser(text(raw, LONGEST))  # noqa: PTH111 (a Path changes more than ~)
    if path.split("/")[0] == "~":  # a user id without an account has none, in a container
        raise ValueTypeError(f"is {show(raw)}, and there is no home here; set HOME, or write the path without ~")
    return path


def _whole(raw: str) -> int | None:
    """A whole number: 1000, 1_000, 0x3e8 and 1e3; not 0010 or 16:40, which are others in YAML, and not 1.5."""
    typed = raw.strip()
    if re.fullmatch(r"[+-]?(0|[1-9]\d*(_\d+)*|0x[0-9a-fA-F]+)", typed, re.ASCII):
        _refuse_beyond(len(typed) > 80)
        value = int(typed, 16 if "x" in typed else 10)
    else:
        if re.fullmatch(r"[+-]?0\d+", typed, re.ASCII):
            raise ValueTypeError(f"is {show(raw)}; write it without zeros in front")
        real = _real(typed)
        _refuse_beyond(real is not None and abs(real) >= BEYOND)
        if real is None or not real.is_integer():
            return None
        value = int(real)
    _refuse_beyond(abs(value) >= BEYOND)
    return value


def _refuse_beyond(beyond: bool) -> None:
    if beyond:
        raise ValueTypeError(f"is a number beyond all bounds; it must be below {BEYOND}")


def _real(raw: str) -> float | None:
    typed = raw.strip()
    if re.fullmatch(r"[+-]?\.?(inf|nan)", typed, re.IGNORECASE):
        return float(typed.replace(".", ""))
    number = r"[+-]?((0|[1-9]\d*(_\d+)*)(\.\d*)?|\.\d+)([eE][+-]?\d+)?"
    return float(typed) if re.fullmatch(number, typed, re.ASCII) else None


def _list(raw: Any, kind: Any) -> list[Any] | None:
    """Items in brackets, by YAML's rules for what separates and quotes them; each is then read by its type."""
    if isinstance(raw, str):
        try:
            raw = parse_yaml(raw, plain=True)
        except ESFormerError as error:
            raise ValueTypeError(f"is {show(raw)}; it {error}") from None
    if not isinstance(raw, list):
        return None
    return [convert(item, kind) for item in raw]


def describe(kind: Any) -> str:
    """A type in words."""
    if get_origin(kind) is list:
        return f"a list, each item {describe(get_args(kind)[0])}, such as [a, b]"
    if kinds := get_args(kind):
        return " or ".join(describe(one) for one in kinds)
    words = {str: "text", int: "a whole number", float: "a number", bool: "true or false", NoneType: "null"}
    return words.get(kind, str(kind))


def show(value: Any) -> str:
    """What somebody typed, short enough for a message."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def dump(tree: dict[str, Any]) -> str:
    """Values as YAML, from which `parse_yaml` reads the same ones, to the letter."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=math.inf)


class _Dumper(yaml.SafeDumper):
    """Text in quotes, but for words and paths that no version of YAML takes for something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    plain = re.fullmatch(r"[A-Za-z/][\w./+-]*", text, re.ASCII) and parse_yaml(text) == text
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if plain else '"')


_Dumper.add_representer(str, _represent_text)
