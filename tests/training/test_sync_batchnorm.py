"""Norm statistics of all devices: Lightning's way to them, and what they compute."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerFn
from quiet import QUIET
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from configs.compose import compose
from configs.schema import ConfigError
from esformer.genotype import Genotype
from esformer.recipe import Recipe
from esformer.training.module import ESFormerModule
from esformer.training.sync_batchnorm import SyncNorms
from pipelines.runtime import build
from pipelines.runtime.plan import Plan
from pipelines.runtime.processes import Processes
from pipelines.runtime.run_folder import RunFolder


@pytest.fixture
def switched(monkeypatch):
    """A module whose norms Lightning's strategy has switched on its way to a GPU."""
    monkeypatch.setattr(DDPStrategy, "root_device", torch.device("cuda:0"))
    for later in ("model_to_device", "configure_ddp", "setup_optimizers", "setup_precision_plugin"):
        monkeypatch.setattr(DDPStrategy, later, lambda *_: None)
    monkeypatch.setattr(DDPStrategy, "determine_ddp_device_ids", lambda _: [0])
    trainer = Trainer(
        **QUIET, strategy=DDPStrategy(process_group_backend="gloo"), devices=1, plugins=[SyncNorms(True, 2)]
    )
    monkeypatch.setattr(trainer.strategy, "accelerator", SimpleNamespace(setup=lambda _: None))
    trainer.state.fn = TrainerFn.FITTING
    module = ESFormerModule(Genotype.shipped("efficientformerv2_s0"), Recipe(epochs=1, warmup_epochs=0), 10, 32)
    trainer.strategy.connect(module)
    norms = {name for name, part in module.model.named_modules() if isinstance(part, nn.BatchNorm2d)}
    trainer.strategy.setup(trainer)
    return module.model, norms


def test_on_gpus_every_norm_is_pytorchs(switched, monkeypatch):
    network, before = switched
    norms = {name: part for name, part in network.named_modules() if isinstance(part, nn.SyncBatchNorm)}
    assert norms.keys() == before
    assert not [part for part in network.modules() if isinstance(part, nn.BatchNorm2d)]
    seen = []
    monkeypatch.setattr(nn.SyncBatchNorm, "forward", lambda self, images: seen.append(self) or images)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    with FakeTensorMode():
        for norm in norms.values():
            norm(torch.empty(2, norm.num_features, 4, 4, device="cuda"))
    assert seen == list(norms.values())


@pytest.mark.parametrize("gpus", [True, False])
def test_a_run_says_where_its_norms_will_be(gpus, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    config = compose("S0", quick=True, overrides=["trainer.sync_batchnorm=true"])
    plan = Plan("train", config, Processes(1, 1), RunFolder(Path(), ""))
    (norms,) = [plugin for plugin in build._machine(plan)["plugins"] if isinstance(plugin, SyncNorms)]
    assert norms.on_gpus == gpus


def test_what_is_saved_and_what_is_evaluated_is_as_before(switched):
    network, _ = switched
    plain = ESFormerModule(Genotype.shipped("efficientformerv2_s0"), Recipe(), 10, 32).model
    plain.load_state_dict(network.state_dict())
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(plain.eval()(images), network.eval()(images))


def test_several_processes_on_cpus_are_refused():
    config = compose("S0", quick=True, overrides=["trainer.sync_batchnorm=true", "trainer.accelerator=cpu"])
    one, two = (Plan("train", config, Processes(devices, 1), RunFolder(Path(), "")) for devices in (1, 2))
    assert build.bare_trainer(one).world_size == 1
    with pytest.raises(ConfigError, match="of 2 processes together need GPUs.* leave trainer.sync_batchnorm out"):
        build.bare_trainer(two)
