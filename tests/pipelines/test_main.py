"""`esformer COMMAND` is `python -m pipelines.COMMAND`."""

import subprocess
import sys
from importlib.metadata import entry_points

import pytest

from pipelines.__main__ import COMMANDS, main


def test_every_command_is_listed_with_what_it_does(capsys):
    main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert COMMANDS == ["ablate", "correlate", "evaluate", "export", "full", "script", "search", "survey", "train"]
    for name in COMMANDS:
        (line,) = [line for line in lines if line.startswith(f"  {name} ")]
        assert len(line) > 40 and line[13].isalpha()
    main([])
    assert capsys.readouterr().out.splitlines() == lines


def test_a_command_that_there_is_not_is_refused(capsys):
    with pytest.raises(SystemExit) as end:
        main(["serch"])
    assert end.value.code == 2 and "there is no command 'serch'; there are ablate, correlate" in capsys.readouterr().err


def test_it_runs_the_command_as_python_does():
    arguments = ["search", "--size", "S1", "seed=3", "--print-config"]
    ours, theirs = (
        subprocess.run([sys.executable, *command], capture_output=True, text=True, check=True).stdout
        for command in (("-m", "pipelines", *arguments), ("-m", "pipelines.search", *arguments[1:]))
    )
    assert ours == theirs and "size: S1\nseed: 3\n" in ours
    script = [point for point in entry_points(group="console_scripts") if point.name == "esformer"]
    assert not script or script[0].load() is main
