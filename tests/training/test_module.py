"""The LightningModule and the averaged weights beside it, through a short real training."""

import pytest
import timm
import torch
from lightning import Callback, Trainer
from quiet import QUIET
from timm.utils import ModelEmaV3

import esformer
import esformer.model.registry
from callbacks.ema import EMA
from esformer.data.datamodule import ImageDataModule, SampleIndex, collate
from esformer.data.datasets import DataConfig
from esformer.genotype import Genotype
from esformer.recipe import Recipe
from esformer.training.module import ESFormerModule, RunningLoss, TrainingError

RECIPE = Recipe(epochs=1, warmup_epochs=0, batch_size=64, lr=1e-3)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A module after four steps, its averaged weights, and its checkpoint."""
    torch.manual_seed(0)
    module = ESFormerModule(Genotype.shipped("efficientformerv2_s0"), RECIPE, num_classes=10, img_size=32)
    data = ImageDataModule(DataConfig("digits", img_size=32, num_classes=10, crop_pct=1.0, workers=0), RECIPE)
    ema, seen = EMA(decay=0.5), []

    class Watch(Callback):
        """Averages by hand what the callback averages."""

        def on_fit_start(self, trainer, pl_module):
            self.by_hand = ModelEmaV3(pl_module.model, decay=0.5, use_warmup=True)

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            seen.append(outputs["loss"].item())
            self.by_hand.update(pl_module.model, step=trainer.global_step)

    watch = Watch()
    trainer = Trainer(
        **QUIET,
        max_epochs=1,
        limit_train_batches=4,
        limit_val_batches=2,
        callbacks=[ema, watch],
    )
    trainer.fit(module, data)
    path = tmp_path_factory.mktemp("trained") / "last.ckpt"
    trainer.save_checkpoint(path)
    return module, ema, watch, path, trainer, data


def test_the_average_is_that_of_the_raw_weights_and_another(trained):
    module, ema, watch, *_ = trained
    for (name, a), b in zip(
        ema.ema.module.state_dict().items(), watch.by_hand.module.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name
    assert not torch.equal(ema.ema.module.head.weight, module.model.head.weight)


def test_both_weights_are_evaluated_and_neither_is_exchanged(trained):
    module, ema, _, _, trainer, data = trained
    raw = {name: value.clone() for name, value in module.model.state_dict().items()}
    metrics = trainer.validate(module, data, verbose=False)[0]
    assert all(torch.equal(value, raw[name]) for name, value in module.model.state_dict().items())
    batch = collate([data.val_set[SampleIndex(0, i, i)] for i in range(128)])
    images, labels = data.normalise(batch.images), batch.targets
    with torch.no_grad():
        for network, name in ((module.model.eval(), "val/"), (ema.ema.module, "val/ema_")):
            logits = network(images)
            assert metrics[f"{name}top1"] == pytest.approx((logits.argmax(1) == labels).float().mean().item())
            top5 = (logits.topk(5).indices == labels[:, None]).any(1).float().mean().item()
            assert metrics[f"{name}top5"] == pytest.approx(top5)


def test_the_checkpoint_carries_its_architecture_and_executes_nothing(trained):
    module, ema, _, path, *_ = trained
    image = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        for network, want in ((esformer.load(path), ema.ema.module), (esformer.load(path, ema=False), module.model)):
            assert network.genotype == Genotype.shipped("efficientformerv2_s0")
            torch.testing.assert_close(network(image), want.eval()(image))
    again = ESFormerModule.load_from_checkpoint(path, weights_only=True)
    assert again.recipe == RECIPE
    assert esformer.load(path, num_classes=3)(image).shape == (1, 3)
    assert [f.shape[-1] for f in esformer.load(path, features_only=True)(image)] == [8, 4, 2, 1]


def test_timm_opens_the_checkpoint_and_takes_the_average(trained):
    _, ema, _, path, *_ = trained
    network = timm.create_model(
        "esformer_s0",
        checkpoint_path=str(path),
        genotype=Genotype.shipped("efficientformerv2_s0"),
        num_classes=10,
        img_size=32,
    )
    for name, value in network.state_dict().items():
        assert torch.equal(value, ema.ema.module.state_dict()[name]), name


def test_every_rank_evaluates_with_the_norms_of_rank_0(tmp_path, warm):
    script = tmp_path / "ranks.py"
    script.write_text(
        "import warnings\n"
        "import torch\n"
        "from esformer.training.module import broadcast_buffers\n"
        "from pipelines.runtime.build import DDP\n"
        "torch.distributed.init_process_group('gloo')\n"
        "norm = torch.nn.BatchNorm2d(2)\n"
        "warnings.simplefilter('error')\n"
        "network = torch.nn.parallel.DistributedDataParallel(norm, **DDP)\n"
        "norm.running_mean.fill_(5 + torch.distributed.get_rank())\n"
        "network.eval()(torch.zeros(1, 2, 3, 3)).sum().backward()\n"
        "assert norm.running_mean[0] == 5 + torch.distributed.get_rank()  # nothing is sent at a forward\n"
        "broadcast, sent = torch.distributed.broadcast, []\n"
        "torch.distributed.broadcast = lambda *args: sent.append(args) or broadcast(*args)\n"
        "broadcast_buffers(norm)\n"
        "assert len(sent) == 2, sent  # one message for each kind of number\n"
        "assert norm.running_mean.tolist() == [5.0, 5.0], norm.running_mean\n"
    )
    for rank in warm.start_ranks(2, [script]):
        rank.finish()


class Poison(Callback):
    """Makes the images of some batches infinite."""

    def __init__(self, batches):
        self.batches, self.weights = batches, {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx in self.batches:
            batch.images.fill_(float("inf"))
        state = pl_module.model.state_dict()
        self.weights[batch_idx] = {name: value.clone() for name, value in state.items() if value.is_floating_point()}


def poisoned(batches, max_skipped):
    torch.manual_seed(0)
    network = Genotype.shipped("efficientformerv2_s0")
    module = ESFormerModule(network, RECIPE, num_classes=10, img_size=32, max_skipped=max_skipped)
    config = DataConfig("digits", img_size=32, num_classes=10, crop_pct=1.0, workers=0, limit=6 * 64)
    poison = Poison(batches)
    trainer = Trainer(**QUIET, max_epochs=1, limit_val_batches=0, callbacks=[poison], use_distributed_sampler=False)
    trainer.fit(module, ImageDataModule(config, RECIPE))
    return module, poison.weights


def test_a_step_that_is_not_finite_changes_nothing(caplog):
    with caplog.at_level("WARNING", "esformer"):
        module, weights = poisoned({1, 3, 4}, max_skipped=2)
    for before, after, same in ((0, 1, False), (1, 2, True), (2, 3, False), (3, 4, True), (4, 5, True)):
        pairs = [(weights[before][name], weights[after][name]) for name in weights[0]]  # norm statistics, too
        assert all(torch.equal(a, b) for a, b in pairs) == same
    assert all(torch.isfinite(value).all() for value in module.state_dict().values())
    assert [record.getMessage().partition(",")[0] for record in caplog.records] == [
        f"the gradient is not finite at step {step} (epoch 1" for step in (1, 3, 4)
    ]


def test_the_mean_loss_goes_on_after_a_restart_and_leaves_out_what_is_not_finite():
    mean, again = RunningLoss(), RunningLoss()
    for loss in (1.0, float("nan"), 2.0, float("inf")):
        mean.update(torch.tensor(loss), images=4)
    again.load(mean.state())
    again.update(torch.tensor(6.0), images=8)
    assert again.compute() == 3.75
    again.load([[4.0, 4], [8.0, 4]])  # of two ranks
    again.update(torch.tensor(3.0), images=8)
    assert again.compute() == 2.25


def test_too_many_in_a_row_end_the_training():
    with pytest.raises(
        TrainingError, match=r"at step 3 \(epoch 1, batch 4\).*image \d+ of the digits.* the 2 steps before"
    ):
        poisoned({1, 2, 3}, max_skipped=2)
