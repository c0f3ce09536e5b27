"""<TAB>: what a shell is answered, over the protocol of argcomplete's script for bash."""

import os
import subprocess
import sys

import pytest

WORD_BREAKS = " \t\n\"'><=;|&(:"
"""bash's own."""


@pytest.fixture
def answers(tmp_path):
    """What comes after a line up to the cursor: words, of the last of which bash knows what is before a `=`."""

    def answers(line):
        asked = {"COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE_COMP_WORDBREAKS": WORD_BREAKS}
        asked |= {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_STDOUT_FILENAME": str(tmp_path / "said")}
        done = subprocess.run([sys.executable, "-m", "pipelines"], env=os.environ | asked, capture_output=True)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
        return (tmp_path / "said").read_text().split("\v")

    return answers


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("esformer s", ["script", "search", "survey"]),
        ("esformer export esformer_s0 --to on", ["onnx "]),
        (
            "esformer search --size S2 recipe.l",
            ["recipe.lr=", "recipe.lr_decay=", "recipe.loss=", "recipe.layer_decay="],
        ),
        ("esformer train data=ci", ["cifar10", "cifar100"]),
        ("esformer full --quick logger=t", ["tensorboard "]),
        ("esformer train recipe.ema=t", ["true "]),
        ("esformer train recipe.lr=", [""]),
        ("esformer nonsense --", ["--help "]),
    ],
)
def test_what_can_come_next(answers, line, expected):
    assert sorted(answers(line)) == sorted(expected)


def test_paths(answers, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images.txt").touch()
    assert sorted(answers(f"esformer train data.root={tmp_path}/im")) == [
        f"{tmp_path}/images.txt",
        f"{tmp_path}/images/",
    ]
    assert answers(f"esformer train data.root={tmp_path}/nowhere/im") == [""]
