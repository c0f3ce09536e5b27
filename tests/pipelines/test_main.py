"""`esformer COMMAND` is `python -m pipelines.COMMAND`."""

import subprocess
import sys
from importlib.metadata import entry_points

import pytest

from configs.explain import SECTIONS_WITH_FILES, choices, settings
from esformer.export import FORMATS
from esformer.export.measuring import RUNTIMES
from pipelines.__main__ import COMMANDS, main
from pipelines.export import KINDS
from pipelines.latency import KINDS as TABLED

HELP = """
import importlib, sys
try:
    importlib.import_module("pipelines." + sys.argv[1]).main(["--help"])
except SystemExit:
    pass
heavy = "torch torchvision lightning timm numpy scipy sklearn matplotlib wandb pandas onnx rich".split()
print([name for name in heavy if name in sys.modules], file=sys.stderr)
"""
WITHOUT_SETTINGS = ("correlate", "dashboard", "export", "latency", "report", "runs", "script")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_light_and_explains_every_setting(command):
    done = subprocess.run([sys.executable, "-c", HELP, command], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"
    said = " ".join(done.stdout.split())
    if command not in WITHOUT_SETTINGS:
        assert [setting.key for setting in settings() if f"{setting.key}: {setting.type} = " not in said] == []
        assert "search.start_proxy: str = naswot " in said and "budget.params: float | None = 3500000.0 " in said
        assert not [line for line in done.stdout.split("settings (key=value)")[1].splitlines() if "  " in line.strip()]
        assert all(f"{section}={'|'.join(choices(section))}" in said for section in SECTIONS_WITH_FILES)
    if command == "latency":
        assert tuple(RUNTIMES) == TABLED
    if command == "export":
        assert all(f"\n  {kind} " in done.stdout for kind in FORMATS) and tuple(FORMATS) == KINDS


def test_every_command_is_listed_with_what_it_does(capsys):
    main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    names = [
        "ablate",
        "correlate",
        "dashboard",
        "evaluate",
        "export",
        "full",
        "latency",
        "report",
        "runs",
        "script",
        "search",
        "survey",
        "train",
    ]
    assert names == COMMANDS
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


def test_a_process_ends_with_a_sentence_and_code_2(tmp_path, warm):
    process = warm.start(["pipelines.export", "esformer_s0", "--to", "onnx", "--opset", "5"], tmp_path)
    assert process.finish(2).strip() == "error: --opset is 5; it must be from 18 to 25"
