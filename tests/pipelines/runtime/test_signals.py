"""SIGUSR1 and SIGTERM stop a pipeline in good order, and SLURM is asked to start it again when that is right."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from esformer.errors import STOPPED, ESFormerError
from pipelines.runtime import signals

ROOT = Path(__file__).parents[3]
USR1, TERM = signal.SIGUSR1, signal.SIGTERM
PIPELINE = """
import os, sys, time
from esformer.errors import ESFormerError
from pipelines.runtime.cli import run
from pipelines.runtime.signals import stop

def say(*words):
    print(*words, flush=True)

def main():
{body}

run(main)
"""


class Script:
    """A pipeline in a process of its own, which says `ready` when the test may begin."""

    def __init__(self, body, before=(), **env):
        lines = "".join(f"    {line}\n" for line in body.strip("\n").splitlines())
        command = [*before, sys.executable, "-c", PIPELINE.format(body=lines)]
        path = {"PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))}
        streams = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.process = subprocess.Popen(command, env=os.environ | path | env, **streams)

    def wait_for(self, line):
        for said in self.process.stdout:
            if said.strip() == line:
                return
        raise AssertionError(self.process.stderr.read())

    def send(self, *numbers):
        for number in numbers:
            self.process.send_signal(number)
            time.sleep(0.05)

    def end(self):
        said, errors = self.process.communicate(timeout=30)
        return self.process.returncode, said, errors


@pytest.fixture(autouse=True)
def _handlers():
    """As they were before."""
    before = {number: signal.getsignal(number) for number in signals.SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def stop(monkeypatch):
    stop = signals.Stop()
    monkeypatch.setattr(signals, "stop", stop)
    return stop


@pytest.mark.parametrize("number", [USR1, TERM])
def test_a_signal_stops_at_once(number):
    script = Script(
        """
try:
    say("ready")
    time.sleep(30)
finally:
    say("closing")
    time.sleep(0.5)
    say("closed")
"""
    )
    script.wait_for("ready")
    script.send(number)
    script.wait_for("closing")
    script.send(TERM, USR1, TERM)  # and nothing can disturb that
    assert script.end() == (STOPPED, "closed\n", "stopped; the same command goes on from here\n")


def test_deferred_it_stops_when_the_work_in_hand_is_done():
    script = Script(
        """
with stop.deferred():
    say("ready")
    while not stop.asked:
        time.sleep(0.01)
    say("saving")
    time.sleep(0.5)
    say("saved")
say("never said")
"""
    )
    script.wait_for("ready")
    script.send(USR1)
    script.wait_for("saving")
    script.send(TERM, USR1, TERM)
    assert script.end()[:2] == (STOPPED, "saved\n")


def test_an_error_while_stopping_is_an_error():
    script = Script(
        """
with stop.deferred():
    say("ready")
    while not stop.asked:
        time.sleep(0.01)
    raise ESFormerError("the disk is full")
"""
    )
    script.wait_for("ready")
    script.send(TERM)
    assert script.end() == (2, "", "error: the disk is full\n")


def test_a_forked_process_does_not_stop_and_can_be_ended():
    script = Script(
        """
child = os.fork()
if child == 0:
    say("ready")
    time.sleep(30)
    os._exit(0)
said, status = os.waitpid(child, 0)
say("ended by", os.WTERMSIG(status))
"""
    )
    script.wait_for("ready")
    children = Path(f"/proc/{script.process.pid}/task/{script.process.pid}/children").read_text().split()
    for number in (USR1, TERM):
        os.kill(int(children[0]), number)
        time.sleep(0.1)
    assert script.end() == (0, "ended by 15\n", "")


@pytest.mark.parametrize("when", ["atexit.register(wait)", "sys.waits = Waits()"])
def test_a_signal_is_too_late_when_the_work_is_done(when):
    script = Script(
        f"""
import atexit

def wait(write=os.write, sleep=time.sleep):
    write(1, b"ready\\n")
    sleep(0.5)

class Waits:  # for the very end, when Python no longer listens
    __del__ = lambda self, wait=wait: wait()

{when}
"""
    )
    script.wait_for("ready")
    script.send(TERM, USR1)
    assert script.end() == (0, "", "")


def test_what_slurm_starts_outlives_signals_until_it_listens():
    task = ROOT / "slurm" / "task"
    process = subprocess.Popen(
        [task, "sh", "-c", "echo ready; sleep 0.5; echo done"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(USR1)
    process.send_signal(TERM)
    assert process.communicate(timeout=10)[0] == "done\n" and process.returncode == 0
    script = Script("say('ready'); time.sleep(30)", before=[task])
    script.wait_for("ready")
    script.send(TERM)
    assert script.end()[0] == STOPPED


def test_it_imports_nothing_heavy(fresh_process):
    code = "import sys, pipelines.runtime.signals; print({'torch', 'numpy', 'lightning'} & set(sys.modules))"
    assert fresh_process("-c", code).strip() == "set()"


def test_install_again_takes_the_signals_back(stop):
    stop.install()
    signal.signal(TERM, signal.SIG_IGN)
    stop.install()
    with pytest.raises(SystemExit) as end:
        signal.raise_signal(TERM)
    assert end.value.code == STOPPED and stop.asked
    signal.raise_signal(USR1)  # the second


def test_deferred_may_be_nested(stop):
    stop.install()
    done = []
    with pytest.raises(SystemExit), stop.deferred():
        with stop.deferred():
            signal.raise_signal(USR1)
        done.append("inner")
    assert done == ["inner"]


@pytest.fixture
def scontrol(tmp_path, monkeypatch):
    """A job of SLURM's, of two tasks, this process its first; gives what was asked of `scontrol`."""
    for name in [name for name in os.environ if name.startswith(("SLURM_", "RANK", "LOCAL_RANK"))]:
        monkeypatch.delenv(name)
    for name, value in {"SLURM_JOB_ID": "12", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    asked = tmp_path / "asked"

    def job(state="RUNNING", batch=1, preempted="None", refuses=""):
        program = tmp_path / "scontrol"
        fields = f"JobId=12 JobName=a=b JobState={state} BatchFlag={batch} PreemptTime={preempted} Command=/x y"
        refusal = f"[ $1 = requeue ] && {{ echo '{refuses}' >&2; exit 1; }}" if refuses else ""
        program.write_text(f"#!/bin/sh\necho $@ >> {asked}\n{refusal}\n[ $1 = show ] && echo '{fields}'\nexit 0\n")
        program.chmod(0o755)
        return lambda: [line for line in asked.read_text().splitlines() if line.startswith("requeue")]

    return job


PREEMPTED = "2026-01-01T00:00:00"


@pytest.mark.parametrize(
    ("numbers", "about", "code", "requeued"),
    [
        ([USR1], {}, STOPPED, True),  # the time limit comes
        ([USR1, TERM], {}, STOPPED, True),
        ([USR1], {"state": "SIGNALING"}, STOPPED, True),  # it has not yet sent it to all
        ([TERM], {"preempted": PREEMPTED}, STOPPED, True),
        ([TERM], {}, 1, False),  # another rank has failed: a restart would fail again, and again
        ([USR1], {"batch": 0}, STOPPED, False),  # somebody sits at the allocation
        ([TERM], {"state": "CANCELLED"}, STOPPED, False),
        ([TERM], {"state": "COMPLETING", "preempted": PREEMPTED}, STOPPED, False),  # SLURM requeues it itself
    ],
)
def test_who_is_put_into_the_queue_again(stop, scontrol, numbers, about, code, requeued):
    stop.received.update(numbers)
    asked = scontrol(**about)
    assert signals.requeue_and_exit_code()[0] == code
    assert asked() == (["requeue 12"] if requeued else [])


def test_one_task_of_an_array_is_put_into_the_queue_again(stop, scontrol, monkeypatch):
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")  # which is also the name of its last task
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    stop.received.add(USR1)
    asked = scontrol()
    assert signals.requeue_and_exit_code() == (STOPPED, "stopped; job 12_1 is in the queue again and goes on from here")
    assert asked() == ["requeue 12_1"]


def test_a_job_that_may_not_be_requeued_says_so(stop, scontrol):
    stop.received.add(USR1)
    scontrol(refuses="Requested operation is presently disabled")
    code, words = signals.requeue_and_exit_code()
    assert code == STOPPED and "submit the same job again" in words and "presently disabled" in words


def test_the_other_ranks_wait_for_the_first_and_ask_nothing(stop, scontrol, monkeypatch, tmp_path):
    monkeypatch.setenv("SLURM_PROCID", "1")
    stop.received.add(USR1)
    scontrol()
    assert signals.requeue_and_exit_code() == (0, "")
    assert not (tmp_path / "asked").exists()


@pytest.mark.parametrize(
    ("number", "about", "expected"),
    [(USR1, {}, True), (TERM, {}, False), (TERM, {"preempted": PREEMPTED}, True), (None, {}, False)],
)
def test_errors_that_another_ranks_stop_causes(stop, scontrol, monkeypatch, number, about, expected):
    """The signal reaches the other rank first, and us while we look at what has happened."""
    monkeypatch.setattr(signals, "LATE", 0.3)
    stop.install()
    stop.disarm()
    scontrol(**about)
    if number:
        signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), number))
        signal.setitimer(signal.ITIMER_REAL, 0.1)
    assert signals.is_shutdown_error(ESFormerError("rank 1 is gone")) == expected


def test_without_other_ranks_an_error_is_an_error(stop, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    stop.received.add(USR1)
    assert not signals.is_shutdown_error(ESFormerError("disk full"))
