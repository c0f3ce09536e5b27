"""Norm statistics of all devices: Lightning's way to them, and what they compute."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerFn
from quiet import QUIET
from timm.layers.norm_act import BatchNormAct2d
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from configs.compose import compose
from esformer.genotype import Genotype
from esformer.recipe import Recipe
from esformer.training.module import ESFormerModule
from esformer.training.sync_batchnorm import SyncNorms
from pipelines.runtime import build
from pipelines.runtime.plan import Plan
from pipelines.runtime.processes import Processes
from pipelines.runtime.run_folder import RunFolder

HERE = Path(__file__).parent


@pytest.fixture
def switched(monkeypatch):
    """A module whose norms Lightning's strategy has switched on its way to a GPU."""
    monkeypatch.setattr(DDPStrategy, "root_device", torch.device("cuda:0"))
    for later in ("model_to_device", "configure_ddp", "setup_optimizers", "setup_precision_plugin"):
        monkeypatch.setattr(DDPStrategy, later, lambda *_: None)
    monkeypatch.setattr(DDPStrategy, "determine_ddp_device_ids", lambda _: [0])
    trainer = Trainer(**QUIET, strategy=DDPStrategy(process_group_backend="gloo"), devices=1, plugins=[SyncNorms(True)])
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


def test_on_cpus_no_norm_is_pytorchs_which_ddp_refuses_there():
    network = SyncNorms(on_gpus=False).apply(nn.Sequential(nn.BatchNorm2d(3), BatchNormAct2d(3)))
    assert not [part for part in network.modules() if isinstance(part, nn.SyncBatchNorm)]
    assert not {type(part) for part in network} & {nn.BatchNorm2d, BatchNormAct2d}


def norms_of(images):
    """What both kinds of norms make of images, and of the gradient of a sum of squares."""
    torch.manual_seed(1)
    network = nn.Sequential(nn.BatchNorm2d(3), BatchNormAct2d(3))
    for part in network:
        nn.init.uniform_(part.weight, 0.5, 1.5)
        nn.init.uniform_(part.bias)
    network = SyncNorms(on_gpus=False).apply(network)
    images = images.clone().requires_grad_()
    out = network(images)
    weights = torch.linspace(-1, 1, out[0].numel()).view_as(out[0])
    (out * weights).square().sum().backward()
    return network, out, images.grad


SCRIPT = """
import sys, torch, torch.distributed as dist
sys.path[:0] = {tests!r}
from test_sync_batchnorm import norms_of
dist.init_process_group('gloo')
rank, collectives = dist.get_rank(), []
for name in ('all_reduce', 'all_gather', 'broadcast'):
    def counted(*args, original=getattr(dist, name), name=name):
        collectives.append(name)
        return original(*args)
    setattr(dist, name, counted)
images = torch.load({path!r})
network, out, gradient = norms_of(images.chunk(2)[rank])
assert collectives == ['all_gather'] * 2 + ['all_reduce'] * 2, collectives  # one a norm and direction
torch.save((network.state_dict(), out, gradient), {path!r} + str(rank))
"""


def test_two_processes_compute_what_one_does_with_all_images(tmp_path, warm):
    path = tmp_path / "images"
    images = torch.randn(8, 3, 5, 5) * 3 + 7
    torch.save(images, path)
    script = tmp_path / "ranks.py"
    script.write_text(SCRIPT.format(path=str(path), tests=[str(HERE), str(HERE.parent)]))
    ranks = warm.start_ranks(2, [script])
    network, out, gradient = norms_of(images)
    for rank in ranks:
        rank.finish()
    found = [torch.load(f"{path}{rank}") for rank in range(2)]
    torch.testing.assert_close(torch.cat([f[1] for f in found]), out, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.cat([f[2] for f in found]), gradient, rtol=1e-4, atol=1e-4)
    for state, _, _ in found:
        torch.testing.assert_close(state, network.state_dict(), rtol=1e-5, atol=1e-5)
