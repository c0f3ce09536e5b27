"""The commands by their names: `esformer train ...` is `python -m pipelines.train ...`."""

import ast
import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from esformer.errors import USER_ERROR

COMMANDS = sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py"))


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command with its arguments; without one, say which there are."""
    if "_ARGCOMPLETE" in os.environ:  # a shell asks how the line can go on
        from pipelines.runtime.completion import complete_command

        argv = [complete_command(COMMANDS)]
    command, *arguments = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if command in ("-h", "--help"):
        print("usage: esformer COMMAND ...\n")
        for name in COMMANDS:
            print(f"  {name:<10} {_about(name)}")
        print("\n`esformer COMMAND --help` says more; `python -m pipelines.COMMAND` is the same.")
        return
    if command not in COMMANDS:
        print(f"error: there is no command {command!r}; there are {', '.join(COMMANDS)}", file=sys.stderr)
        sys.exit(USER_ERROR)
    sys.argv = [sys.argv[0], *arguments]
    runpy.run_module(f"pipelines.{command}", run_name="__main__", alter_sys=True)


def _about(command: str) -> str:
    """What the first line of a command's file says, which is read and not run."""
    text = ast.get_docstring(ast.parse((Path(__file__).parent / f"{command}.py").read_text())) or ""
    return text.partition("\n")[0].partition(": ")[2]


if __name__ == "__main__":
    main()
