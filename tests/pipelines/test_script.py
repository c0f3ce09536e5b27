"""Scripts that know timm's names alone run with ours."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipelines import script

SCRIPT = """
import argparse, sys
import beside
import timm

parser = argparse.ArgumentParser()
parser.add_argument("--model")
parser.add_argument("--img-size", type=int)
asked = parser.parse_args()
network = timm.create_model(asked.model, img_size=asked.img_size, num_classes=3)
print(sys.argv[0], __name__, __file__, type(network).__name__, network.img_size, beside.__file__)
"""


@pytest.fixture
def validate(tmp_path):
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts/beside.py").write_text("")
    (tmp_path / "scripts/validate.py").write_text(SCRIPT)
    return tmp_path / "scripts/validate.py"


@pytest.mark.nightly
def test_a_script_runs_as_python_runs_it_and_knows_our_names(validate, fresh_process):
    # a warm process would know them without
    said = fresh_process("-m", "pipelines.script", validate, "--model", "esformer_s1", "--img-size", "32")
    assert said == f"{validate} __main__ {validate} ESFormer (32, 32) {validate.parent / 'beside.py'}\n"


def test_what_is_no_script(tmp_path, capsys):
    for wrong in ("nowhere.py", str(tmp_path)):
        with pytest.raises(SystemExit) as end:
            script.main([wrong, "--model", "esformer_s0"])
        assert end.value.code == 2
        said = f"error: there is no script {wrong}; give the path of one of timm's, such as train.py\n"
        assert capsys.readouterr().err == said


@pytest.mark.parametrize("asked", [[], ["--help"], ["-h"]])
def test_help(asked, capsys):
    script.main(asked)
    assert "python -m pipelines.script validate.py --model esformer_s0" in capsys.readouterr().out


def test_help_is_quick():
    root = Path(__file__).parent.parent.parent
    code = "import sys, pipelines.script; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True, timeout=60)
