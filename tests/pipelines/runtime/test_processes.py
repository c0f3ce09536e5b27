"""How many processes a run has: from SLURM, from torchrun or from the settings; and what is wrong with them."""

import os
from pathlib import Path

import pytest
import torch
from lightning import Trainer
from lightning.fabric.plugins.environments import LightningEnvironment

from configs.compose import compose
from configs.schema import ConfigError
from pipelines.runtime.build import _machine, _search_machine, search_fabric
from pipelines.runtime.plan import Plan
from pipelines.runtime.processes import check_gpus, processes, with_workers
from pipelines.runtime.run_folder import RunFolder

STEP = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "esformer-full", "SLURM_STEP_ID": "0", "SLURM_PROCID": "0"}
STEP |= {"SLURM_LOCALID": "0", "SLURM_NODEID": "0"}


@pytest.fixture(autouse=True)
def _nowhere(monkeypatch):
    """In no job, and started by nobody."""
    for name in [name for name in os.environ if name.startswith(("SLURM", "TORCHELASTIC", "CUDA_VISIBLE"))]:
        monkeypatch.delenv(name)


@pytest.fixture
def srun(monkeypatch):
    """Be a task that srun started."""

    def srun(tasks, nodes, shares, **env):
        numbers = {"SLURM_STEP_NUM_TASKS": tasks, "SLURM_STEP_NUM_NODES": nodes, "SLURM_STEP_TASKS_PER_NODE": shares}
        numbers |= {"SLURM_NTASKS": tasks, "SLURM_NNODES": nodes}
        for name, value in (STEP | numbers | env).items():
            monkeypatch.setenv(name, str(value))

    return srun


def found(*settings):
    of = processes(compose("S0", False, settings))
    return of.devices, of.nodes, of.starter


def test_nobody_started_any():
    assert found() == (1, 1, None)
    assert found("trainer.devices=2", "trainer.num_nodes=3") == (2, 3, None)


@pytest.mark.parametrize(
    ("tasks", "nodes", "shares", "expected"),
    [(1, 1, "1", (1, 1)), (2, 2, "1(x2)", (1, 2)), (8, 2, "4(x2)", (4, 2)), (2, 1, "2", (2, 1)), (8, 2, "4,4", (4, 2))],
)
def test_slurm_says_how_many(srun, tasks, nodes, shares, expected):
    srun(tasks, nodes, shares)
    assert found() == (*expected, "SLURM")
    assert found(f"trainer.devices={expected[0]}", f"trainer.num_nodes={expected[1]}") == (*expected, "SLURM")


def test_lightning_takes_them_and_leaves_signals_alone(srun):
    srun(4, 2, "2(x2)", SLURM_PROCID=2, SLURM_NODEID=1)  # without SLURM_NTASKS_PER_NODE, which Lightning would refuse
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, **processes(compose()).settings())
    environment = trainer.strategy.cluster_environment
    assert (trainer.world_size, trainer.global_rank, environment.auto_requeue) == (4, 2, False)


def test_torchrun_says_how_many(monkeypatch):
    names = {"RANK": "5", "LOCAL_RANK": "1", "GROUP_RANK": "1", "LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "8"}
    for name, value in (names | STEP | {"TORCHELASTIC_RUN_ID": "x", "SLURM_NTASKS": "2"}).items():
        monkeypatch.setenv(name, value)
    assert found() == (4, 2, "torchrun")
    with pytest.raises(
        ConfigError, match="torchrun started 4 processes on each of 2 nodes.* --nnodes=2 --nproc-per-node=8"
    ):
        found("trainer.devices=8")


@pytest.mark.parametrize(
    ("job", "settings", "sentence"),
    [
        ((3, 2, "2,1"), [], "SLURM started 3 tasks on 2 nodes, not the same number on each (2,1): submit with --nodes=2"
        " --ntasks-per-node=2 instead of --ntasks=3"),
        ((4, 2, "3,1"), [], "not the same number on each (3,1): submit with --nodes=2 --ntasks-per-node=2"),
        ((5, 3, "2(x2),1"), [], "not the same number on each (2(x2),1): submit with --nodes=3 --ntasks-per-node=2"),
        ((1, 1, "1"), ["trainer.devices=4"], "SLURM started 1 process on one node, but trainer.devices=4 and"
        " trainer.num_nodes=1 ask for others: start with --nodes=1 --ntasks-per-node=4, or leave"),
        ((4, 2, "2(x2)"), ["trainer.num_nodes=4"], "SLURM started 2 processes on each of 2 nodes, but trainer.devices=2"
        " and trainer.num_nodes=4 ask for others: start with --nodes=4 --ntasks-per-node=2, or leave"),
    ],
)  # fmt: skip
def test_wrong_tasks(srun, job, settings, sentence):
    srun(*job)
    with pytest.raises(ConfigError) as error:
        found(*settings)
    assert sentence in str(error.value)


def test_python_without_srun(monkeypatch):
    for name, value in {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "1"}.items():
        monkeypatch.setenv(name, value)
    assert found("trainer.devices=2") == (2, 1, None)  # one task may start others itself
    assert isinstance(processes(compose()).environment, LightningEnvironment)  # not SLURM's, which starts none
    monkeypatch.setenv("SLURM_NTASKS", "4")
    with pytest.raises(ConfigError, match="SLURM is to start 4 tasks, .* write `srun` before `python`"):
        found()
    monkeypatch.setenv("SLURM_JOB_NAME", "interactive")
    assert found() == (1, 1, None)


def test_a_shell_within_a_job_is_a_shell(srun):
    srun(1, 1, "1", SLURM_JOB_NAME="bash")
    assert found("trainer.devices=2") == (2, 1, None)


def test_srun_in_an_interactive_job(srun):
    srun(2, 1, "2", SLURM_JOB_NAME="interactive", SLURM_PROCID=1, SLURM_LOCALID=1)
    assert found() == (2, 1, "SLURM")
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, **processes(compose()).settings())
    assert (trainer.world_size, trainer.global_rank) == (2, 1)


@pytest.mark.parametrize(
    ("env", "sentence"),
    [
        ({"SLURM_GPUS_ON_NODE": "4"}, "gave this node 4 GPUs and started 2 tasks on it, and a task trains on one:"
        " submit with --ntasks-per-node=4, or with --gpus-per-node=2"),
        ({"SLURM_GPUS_ON_NODE": "1"}, "gave this node 1 GPU and started 2 tasks"),
        ({"SLURM_GPUS_ON_NODE": "2", "CUDA_VISIBLE_DEVICES": "0"}, "sees 1 GPU (CUDA_VISIBLE_DEVICES=0), and must see"
        " all of the node's: submit with --gpus-per-node=2 instead of --gpus-per-task"),
        ({"SLURM_GPUS_ON_NODE": "2", "CUDA_VISIBLE_DEVICES": "0,1"}, None),
        ({}, None),
    ],
)  # fmt: skip
def test_a_task_has_a_gpu(srun, env, sentence):
    srun(4, 2, "2(x2)", **env)
    config = compose()
    if sentence is None:
        return check_gpus(config, processes(config))
    with pytest.raises(ConfigError) as error:
        check_gpus(config, processes(config))
    assert sentence in str(error.value)
    config = compose(overrides=["trainer.accelerator=cpu"])
    return check_gpus(config, processes(config))


def test_the_cpus_of_a_process_load_its_images(srun, monkeypatch):
    monkeypatch.setattr("pipelines.runtime.processes.cpus", lambda: 24)
    assert [processes(compose(overrides=[f"trainer.devices={n}"])).cpus for n in (1, 4, 100)] == [24, 6, 1]
    for settings, workers in (([], 16), (["trainer.devices=4"], 6), (["data.workers=0"], 0), (["data.workers=40"], 40)):
        config = compose(overrides=settings)
        assert with_workers(config.data, processes(config)).workers == workers
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "8")
    assert processes(compose()).cpus == 24  # of another's tasks
    srun(2, 1, "2")
    assert processes(compose()).cpus == 8  # each has its own


def plan_of(*settings):
    config = compose(overrides=settings)
    return Plan("full", config, processes(config), RunFolder(Path(), ""))


def test_who_searches_alone_does_so_on_its_own_gpu(monkeypatch):
    asked = "search.accelerator=gpu"
    assert _search_machine(plan_of(asked))["devices"] == 1  # there is none: Lightning says so
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert _search_machine(plan_of(asked))["devices"] == [0] and _search_machine(plan_of())["devices"] == 1
    monkeypatch.setenv("LOCAL_RANK", "1")  # one that Lightning started, to train
    assert _search_machine(plan_of(asked, "trainer.devices=2"))["devices"] == [1]


def test_ranks_search_together_each_on_its_own_device(srun, monkeypatch):
    srun(4, 1, "4", SLURM_PROCID=3, SLURM_LOCALID=3)
    fabric = search_fabric(plan_of("search.accelerator=cpu"))
    assert (fabric.world_size, fabric.global_rank, fabric.local_rank) == (4, 3, 3)  # before they are connected
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize("name", ["auto", "ddp", "ddp_find_unused_parameters_false"])
def test_several_devices_speak_over_our_backend(name, monkeypatch):
    monkeypatch.setattr("pipelines.runtime.build._backend", lambda config: "cpu:gloo,cuda:nccl")
    how = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    for devices in (2, 1):
        strategy = _machine(plan_of(f"trainer.strategy={name}", f"trainer.devices={devices}"))["strategy"]
        if devices == 2 or name != "auto":
            assert strategy._get_process_group_backend() == "cpu:gloo,cuda:nccl"
    if name != "auto":  # what Lightning makes of the name is what we make
        theirs = Trainer(strategy=name, devices=2, **how).strategy
        ours = Trainer(strategy=strategy, devices=2, **how).strategy
        assert type(theirs) is type(ours) and theirs._start_method == ours._start_method
        plain = {"find_unused_parameters": False}
        assert {**theirs._ddp_kwargs, **plain}.items() <= {**ours._ddp_kwargs, **plain}.items()
