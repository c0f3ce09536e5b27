"""Tab completion: what a shell asks for on <TAB>, answered by argcomplete from the same parser that reads the command.

`eval "$(register-python-argcomplete esformer)"` has bash and zsh ask; the process is then started with `_ARGCOMPLETE`
in its environment, answers and ends. Nothing is imported where nobody asks.
"""

import os
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence

from configs.compose import PATHS
from configs.explain import SECTIONS_WITH_FILES, choices, settings
from configs.schema import LOGGERS, PRECISIONS, STRATEGIES
from esformer.choices import SIZES

ASKED = "_ARGCOMPLETE"
"""argcomplete's: that a shell asks, and the number of the word that is the command, counted from 1."""
VALUES = {"size": SIZES, "logger": LOGGERS, "trainer.precision": PRECISIONS, "trainer.strategy": STRATEGIES}
"""Settings that are one of a few words."""


def complete(parser: ArgumentParser) -> None:
    """Answer and end, if a shell asks; arguments named `settings` are `key=value`."""
    if ASKED not in os.environ:
        return
    import argcomplete

    for action in parser._actions:
        if action.dest == "settings":
            action.completer = _settings  # type: ignore[attr-defined]
    argcomplete.autocomplete(parser)


def complete_command(commands: Sequence[str]) -> str:
    """The command whose arguments a shell asks for; answers and ends if it is the command itself that is lacking.

    Args:
        commands: which there are.

    Returns:
        One of them, which is to answer.
    """
    from argcomplete.lexers import split_line

    words = split_line(os.environ["COMP_LINE"], int(os.environ["COMP_POINT"]))[3]
    if len(words) > 1 and words[1] in commands:
        os.environ[ASKED] = "2"  # the command is the second word
        return words[1]
    parser = ArgumentParser()
    parser.add_argument("command", choices=commands)
    complete(parser)
    raise AssertionError("argcomplete answers and ends")


def _settings(prefix: str, parsed_args: Namespace, **_: object) -> list[str]:
    """Keys, each with its `=`; behind one, what it may be."""
    key, equals, value = prefix.partition("=")
    if not equals:
        return [f"{name}=" for name in (*SECTIONS_WITH_FILES, *(setting.key for setting in settings()))]
    return [f"{key}={word}" for word in _values(key, value)]


def _values(key: str, begun: str) -> Sequence[str]:
    kinds = {setting.key: setting.kind for setting in settings()}
    if key in SECTIONS_WITH_FILES:
        return choices(key)
    if key in VALUES:
        return VALUES[key]
    if kinds.get(key) is bool:
        return ("true", "false")
    if key in PATHS:
        from argcomplete.completers import FilesCompleter

        return FilesCompleter()(begun)
    return ()
