"""The figures of a validation: torchmetrics' values, and no waiting for the device."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from callbacks.ema import EMA
from esformer.data.base import IGNORE
from esformer.data.datamodule import Batch
from esformer.genotype import Genotype
from esformer.recipe import Recipe
from esformer.training.metrics import MeanLoss, accuracies
from esformer.training.module import ESFormerModule


def test_images_that_fill_up_are_not_counted():
    metrics = accuracies(10)
    logits = torch.eye(10)
    labels = torch.arange(10)
    metrics.update(logits[:4], torch.tensor([0, 1, 9, IGNORE]))
    assert metrics.compute()["top1"].item() == pytest.approx(2 / 3)
    metrics.reset()
    metrics.update(logits, torch.full_like(labels, IGNORE))
    assert metrics.compute() == {"top1": 0, "top5": 0}
    metrics.update(logits, labels)
    assert metrics.compute()["top1"].item() == 1.0


@pytest.mark.filterwarnings("ignore:.*nan.*:UserWarning")
@pytest.mark.parametrize("classes", [3, 10, 1000])
def test_values_are_those_of_torchmetrics_to_the_last_bit(classes):
    generator = torch.Generator().manual_seed(0)
    ours, loss, theirs_loss = accuracies(classes), MeanLoss(), MeanMetric()
    theirs = {
        f"top{k}": MulticlassAccuracy(classes, min(k, classes), average="micro", ignore_index=IGNORE) for k in (1, 5)
    }
    for number in range(8):
        logits = torch.randn(33, classes, generator=generator).bfloat16().float()  # with several of the same value
        targets = torch.randint(classes, (33,), generator=generator)
        targets[: 5 * number] = IGNORE  # in the end all of them
        logits[-1] = float("nan") if number == 2 else 0.0
        ours.update(logits, targets)
        loss.update(logits, targets)
        for metric in theirs.values():
            metric.update(logits, targets)
        if counted := int((targets != IGNORE).sum()):
            theirs_loss.update(F.cross_entropy(logits, targets, ignore_index=IGNORE), weight=counted)
    assert ours.compute() == {name: metric.compute() for name, metric in theirs.items()}
    assert torch.equal(loss.compute(), theirs_loss.compute())


@pytest.mark.slow
def test_a_validation_waits_for_nothing():
    """On fake tensors of a GPU, which have no values to look at."""
    module = ESFormerModule(Genotype.shipped("efficientformerv2_s0"), Recipe(epochs=1, warmup_epochs=0), 10, 32).eval()
    module.log = module.log_dict = lambda *_, **__: None
    ema = EMA()
    ema.setup(SimpleNamespace(), module, "fit")
    with FakeTensorMode(allow_non_fake_inputs=True):
        for part in (module, ema.ema, ema.accuracy):
            part.to_empty(device="cuda")
        for metric in (module.val_loss, *module.val_accuracy.values(), *ema.accuracy.values()):
            metric.to("cuda")
        targets = torch.zeros(4, dtype=torch.int64, device="cuda")
        batch = Batch(torch.zeros(4, 3, 32, 32, device="cuda"), targets, None)
        module.validation_step(batch, 0)
        trainer = SimpleNamespace(precision_plugin=SimpleNamespace(val_step_context=lambda: torch.no_grad()))
        ema.on_validation_batch_end(trainer, module, None, batch)
        for value in (*module.val_accuracy.compute().values(), module.val_loss.compute()):
            assert value.device.type == "cuda"
