"""On how many processes a run works: what SLURM or torchrun started, or as many as the settings ask for."""

import os
import platform
import re
from dataclasses import dataclass, replace
from typing import Any

import torch
from lightning.fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)

from configs.schema import Config, ConfigError
from esformer.data.datasets import DataConfig, cpus, default_workers
from esformer.model.latency import device_name

INTERACTIVE = ("bash", "interactive")
"""Names that SLURM gives to jobs in which a person types; there, a lone process is an ordinary one."""


@dataclass(frozen=True)
class Processes:
    """Processes that work together, one a device.

    Args:
        devices: processes on each node.
        nodes: machines.
        starter: who started them all, `SLURM` or `torchrun`; None if they are still to be started, by Lightning.
        environment: how Lightning finds the others; None lets it see for itself.
    """

    devices: int
    nodes: int
    starter: str | None = None
    environment: ClusterEnvironment | None = None

    @property
    def world_size(self) -> int:
        """How many there are."""
        return self.devices * self.nodes

    @property
    def cpus(self) -> int:
        """CPUs of each process: SLURM's for a task, else an equal share of what this machine lets them use."""
        here, task = cpus(), os.environ.get("SLURM_CPUS_PER_TASK", "")
        if self.starter == "SLURM" and task.isdecimal():
            return max(1, min(here, int(task)))
        return max(1, here // self.devices)

    def settings(self) -> dict[str, Any]:
        """What Lightning's Trainer and Fabric are to be told."""
        plugins = [] if self.environment is None else [self.environment]
        return {"devices": self.devices, "num_nodes": self.nodes, "plugins": plugins}


class Slurm(SLURMEnvironment):
    """SLURM's tasks as Lightning sees them, without its signal handlers (`pipelines.runtime.signals` says why).

    Its checks are `processes`', which say what to change; and it counts the tasks of the step that srun started, not
    those that the job asked for.
    """

    def __init__(self) -> None:
        super().__init__(auto_requeue=False)

    def world_size(self) -> int:
        return int(os.environ.get("SLURM_STEP_NUM_TASKS") or os.environ["SLURM_NTASKS"])

    def validate_settings(self, num_devices: int, num_nodes: int) -> None:
        pass

    @staticmethod
    def _validate_srun_used() -> None:
        pass

    @staticmethod
    def _validate_srun_variables() -> None:
        pass


def processes(config: Config) -> Processes:
    """The processes of this run.

    Raises:
        ConfigError: SLURM or torchrun started others than the settings ask for, or so that they cannot work together.
    """
    t = config.trainer
    if TorchElasticEnvironment.detect():
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // devices
        found = Processes(devices, nodes, "torchrun", TorchElasticEnvironment())
    elif (tasks := _tasks()) is not None:
        found = Processes(*tasks, "SLURM", Slurm())
    else:  # in a SLURM job Lightning would look for tasks that there are not
        environment = LightningEnvironment() if "SLURM_JOB_ID" in os.environ else None
        return Processes(t.devices or 1, t.num_nodes or 1, environment=environment)
    asked = (t.devices or found.devices, t.num_nodes or found.nodes)
    if asked != (found.devices, found.nodes):
        options = (
            "--nnodes={1} --nproc-per-node={0}" if found.starter == "torchrun" else "--nodes={1} --ntasks-per-node={0}"
        )
        raise ConfigError(
            f"{found.starter} started {_count(found.devices, 'process', 'es')} on"
            f" {'one node' if found.nodes == 1 else f'each of {found.nodes} nodes'}, but trainer.devices={asked[0]} and"
            f" trainer.num_nodes={asked[1]} ask"
            f" for others: start with {options.format(*asked)}, or leave the two settings out"
        )
    return found


def with_workers(data: DataConfig, found: Processes) -> DataConfig:
    """Give each process as many image loaders as it has CPUs, where the settings leave that open."""
    return data if data.workers is not None else replace(data, workers=default_workers(found.cpus))


def check_gpus(config: Config, found: Processes) -> None:
    """Refuse tasks that would share a GPU of SLURM's, or leave one idle.

    Raises:
        ConfigError: there is not one task for each GPU of a node, or a task does not see all GPUs of its node.
    """
    if found.starter != "SLURM" or config.trainer.accelerator not in ("auto", "gpu", "cuda"):
        return
    gpus = os.environ.get("SLURM_GPUS_ON_NODE", "")
    if gpus.isdigit() and int(gpus) > 0 and int(gpus) != found.devices:
        raise ConfigError(
            f"SLURM gave this node {_count(int(gpus), 'GPU')} and started {_count(found.devices, 'task')} on it, and a"
            f" task trains on one: submit with --ntasks-per-node={gpus}, or with --gpus-per-node={found.devices}"
        )
    visible = [device for device in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if device]
    if visible and len(visible) < found.devices:
        raise ConfigError(
            f"each of the {found.devices} tasks on this node sees {_count(len(visible), 'GPU')} (CUDA_VISIBLE_DEVICES"
            f"={','.join(visible)}), and must see all of the node's: submit with --gpus-per-node={found.devices}"
            " instead of --gpus-per-task or --gpu-bind"
        )


def _tasks() -> tuple[int, int] | None:
    """Tasks on each node, and nodes, that srun started; None where it started this process alone or not at all."""
    env = os.environ
    if "SLURM_JOB_ID" not in env:
        return None
    interactive = env.get("SLURM_JOB_NAME") in INTERACTIVE
    if "SLURM_STEP_ID" not in env:
        tasks = max(int(env.get("SLURM_NTASKS") or 1), int(env.get("SLURM_NNODES") or 1))
        if tasks > 1 and not interactive:
            raise ConfigError(
                f"SLURM is to start {tasks} tasks, but this process was started without it: write `srun` before"
                " `python` in the batch script, as those in slurm/ do, or ask for one task on one node"
            )
        return None
    tasks = int(env.get("SLURM_STEP_NUM_TASKS") or env.get("SLURM_NTASKS") or 1)
    nodes = int(env.get("SLURM_STEP_NUM_NODES") or env.get("SLURM_NNODES") or 1)
    if tasks == 1 and interactive:
        return None
    shares = env.get("SLURM_STEP_TASKS_PER_NODE") or env.get("SLURM_TASKS_PER_NODE") or ""  # such as 2(x3),1
    if tasks % nodes or len(set(re.sub(r"\(x\d+\)", "", shares).split(","))) > 1:
        even = -(-tasks // nodes)
        raise ConfigError(
            f"SLURM started {tasks} tasks on {nodes} nodes, not the same number on each ({shares}): submit with"
            f" --nodes={nodes} --ntasks-per-node={even} instead of --ntasks={tasks}"
        )
    return tasks // nodes, nodes


def _count(number: int, what: str, plural: str = "s") -> str:
    return f"{number} {what}{plural if number != 1 else ''}"


def machine() -> str:
    """Python, the system, and how many CPUs of which kind this process may use."""
    kind = device_name(torch.device("cpu"))
    return f"Python {platform.python_version()}, {platform.platform()}, {cpus()} CPU{'s' * (cpus() != 1)} ({kind})"
