"""A real SLURM cluster of two nodes on this machine, and the project's own scripts submitted to it."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
COMMANDS = ("slurmctld", "slurmd", "sbatch", "srun", "scancel", "scontrol", "sinfo")
FINAL = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
CONFIGURATION = """
ClusterName=tests
SlurmctldHost=localhost
SlurmUser=root
SlurmdUser=root
AuthType=auth/none
CredType=cred/none
AuthInfo=cred_expire=5
SlurmctldPort={0}
SlurmdPort={1}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1
ReturnToService=2
KillWait=30
MinJobAge=3600
InactiveLimit=0
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmdTimeout=60
MessageTimeout=10
NodeName=n[1-2] NodeHostname=localhost NodeAddr=127.0.0.1 Port=[{2}-{3}] CPUs=2 RealMemory=1000 State=UNKNOWN
PartitionName=main Nodes=n[1-2] Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=n[1-2] Default=NO MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""
CLUSTER = """
options=({options} --output={logs}/%x-%j.log)
environment() {{
    export PATH={bin}:$PATH PYTHONPATH={root} OMP_NUM_THREADS=1 MASTER_ADDR=127.0.0.1 # n1 is no name that resolves
}}
"""
PYTHON = """#!/bin/sh
exec {python} {disturbed} {plan} "$@"
"""


class Cluster:
    """Two nodes of two CPUs each.

    Args:
        folder: everything of it lies here.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.plan = folder, folder / "plan"
        for name in ("state", "spool-n1", "spool-n2", "log", "run", "bin", "plan", "output"):
            (folder / name).mkdir()
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH"))}
        self.environment |= {"SLURM_CONF": str(folder / "slurm.conf")}
        ports = _free_ports()
        (folder / "slurm.conf").write_text(CONFIGURATION.format(*ports, folder=folder))
        python = folder / "bin" / "python"
        disturbed = Path(__file__).parent / "disturbed.py"
        python.write_text(PYTHON.format(python=sys.executable, disturbed=disturbed, plan=self.plan))
        python.chmod(0o755)

    def start(self) -> None:
        for daemon in (["slurmctld", "-c"], ["slurmd", "-N", "n1"], ["slurmd", "-N", "n2"]):
            self.run(*daemon)
        deadline = time.monotonic() + 30
        while self.run("sinfo", "-h", "-t", "idle", "-o", "%D", "-p", "main").strip() != "2":
            assert time.monotonic() < deadline, self._logs()
            time.sleep(0.1)

    def stop(self) -> None:
        with suppress(subprocess.CalledProcessError):
            self.run("scancel", "--full", "-s", "KILL", "-u", "root")
            self.run("scancel", "-u", "root")
        for file in sorted((self.folder / "run").glob("*.pid"), reverse=True):
            with suppress(ProcessLookupError, ValueError, FileNotFoundError):
                pid = int(file.read_text())
                os.kill(pid, signal.SIGTERM)
                deadline = time.monotonic() + 15
                while time.monotonic() < deadline:
                    os.kill(pid, 0)
                    time.sleep(0.05)

    def run(self, *command: str) -> str:
        """What a command prints on this cluster."""
        done = subprocess.run(command, env=self.environment, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def submit(self, *arguments: str, options: str = "--nodes=2 --ntasks-per-node=1") -> "Job":
        """Submit one of the project's scripts as a user does, with this cluster's options in place of theirs."""
        settings = self.folder / f"cluster-{len(list(self.folder.glob('cluster-*')))}.sh"
        logs = self.folder / "output"
        settings.write_text(CLUSTER.format(options=options, logs=logs, bin=self.folder / "bin", root=ROOT))
        command = ["env", f"ESFORMER_CLUSTER={settings}", "slurm/submit", "--parsable", *arguments]
        return Job(self, self.run(*command).strip())

    def disturb(self, moment: str, command: str) -> None:
        """Have the first process of the next job run a command when it comes to a moment; `disturbed.py` has them."""
        (self.plan / moment).write_text(command)

    def _logs(self) -> str:
        return "\n".join(file.read_text()[-3000:] for file in (self.folder / "log").iterdir())


class Job:
    """A job.

    Args:
        cluster: where it was submitted.
        number: its name there.
    """

    def __init__(self, cluster: Cluster, number: str) -> None:
        self.cluster, self.number = cluster, number

    def __getitem__(self, field: str) -> str:
        said = self.cluster.run("scontrol", "show", "job", "--oneliner", self.number)
        return dict(re.findall(r"(\S+?)=(\S*)", said))[field]

    @property
    def log(self) -> str:
        (file,) = (self.cluster.folder / "output").glob(f"*-{self['JobId']}.log")
        return file.read_text()

    def end(self, *, restarts: int = 0, state: str = "COMPLETED", seconds: float = 900) -> str:
        """Wait for its end, which must be of this kind after so many restarts; gives what it said in all of them."""
        deadline = time.monotonic() + seconds
        hurried: set[str] = set()
        while (now := self["JobState"]) not in FINAL:
            assert time.monotonic() < deadline, f"{now}\n{self.log[-5000:]}"
            if now == "PENDING" and self["Reason"] == "BeginTime" and self["Restarts"] not in hurried:
                hurried.add(self["Restarts"])  # SLURM has requeued jobs wait; a second is needed, as nodes count so
                with suppress(AssertionError):
                    self.cluster.run("scontrol", "update", f"JobId={self.number}", "StartTime=now+2")
            time.sleep(0.1)
        assert (now, int(self["Restarts"])) == (state, restarts), self.log[-8000:]
        return self.log


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    missing = [command for command in COMMANDS if shutil.which(command) is None]
    if missing:
        pytest.skip(f"there is no SLURM here ({missing[0]}): apt-get install slurm-wlm munge")
    if os.getuid() != 0:
        pytest.skip("a SLURM cluster of one's own takes root, as in a container")
    cluster = Cluster(tmp_path_factory.mktemp("slurm"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def _free_ports() -> list[int]:
    """Four, the last two of them in a row."""
    while True:
        with ExitStack() as taken:
            ports = []
            for wanted in (0, 0, 0, None):
                one = taken.enter_context(socket.socket())
                with suppress(OSError, OverflowError):
                    one.bind(("127.0.0.1", ports[-1] + 1 if wanted is None else wanted))
                    ports.append(one.getsockname()[1])
            if len(ports) == 4:
                return ports
