"""A test process that dies costs nothing, if its test does not kill the next one too."""

import subprocess
import sys

import pytest

DONE = """
import pytest, time

@pytest.mark.parametrize("number", range(20))
def test_done(number):
    time.sleep(0.05)
"""
KILLED = """
import os, pathlib, signal, time, pytest

def test_killed():
    with pathlib.Path("killed").open("a") as killed:
        killed.write("x")
    if len(pathlib.Path("killed").read_text()) <= {times}:
        time.sleep(2)  # until the other process has nothing left to do
        os.kill(os.getpid(), signal.SIGSEGV)

@pytest.mark.parametrize("number", range(3))
def test_left(number): ...
"""


@pytest.mark.nightly
@pytest.mark.parametrize(("times", "counts"), [(1, "84 passed, 1 skipped"), (2, "1 failed, 84 passed, 1 skipped")])
def test_a_test_is_tried_again_and_those_that_were_left_are_run(tmp_path, pytestconfig, times, counts):
    for name in "abcd":
        (tmp_path / f"test_{name}.py").write_text(DONE)
    (tmp_path / "test_killed.py").write_text(KILLED.format(times=times))
    command = [sys.executable, "-m", "pytest", "-q", "-n2", "--dist=loadfile", "-pcrashes", "-pno:faulthandler", "."]
    env = {"PYTHONPATH": str(pytestconfig.rootpath / "tests"), "PATH": ""}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
    assert counts in done.stdout
    assert done.stdout.count("ended with -11 in test_killed.py::test_killed\n") == times
