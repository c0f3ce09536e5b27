"""What a network makes of images: every figure against one worked out otherwise, and images that do not count."""

import numpy as np
import pytest
import torch
from torch import nn
from torchmetrics.functional.classification import multiclass_calibration_error

from esformer.data.datamodule import IGNORE, Batch
from esformer.training.evaluation import Evaluation, Evaluator

CLASSES = 7


class Told(nn.Module):
    """Gives the logits that are drawn as the pixels of an image."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images):
        return self.scale * images[:, 0, 0]


def evaluate(logits, targets, batch_size=16):
    evaluator = Evaluator(Told(), CLASSES, batch_size)
    for some, theirs in zip(logits.split(batch_size), targets.split(batch_size), strict=True):
        evaluator.validation_step(Batch(some[:, None, None].expand(-1, 3, 1, -1), theirs, None), 0)
    evaluator.on_validation_epoch_end()
    return evaluator.found


@pytest.fixture
def drawn():
    """Logits of 203 images, the last class never the likeliest, and their classes, of which some do not count."""
    logits, targets = 3 * torch.randn(203, CLASSES), torch.randint(CLASSES - 1, (203,))
    logits[:, -1] -= 20
    targets[::9] = IGNORE
    return logits, targets


@pytest.mark.parametrize("kind", ["any", "small"])
def test_every_figure_is_what_its_definition_gives(drawn, kind):
    logits, targets = drawn
    if kind == "small":  # they could be taken for probabilities
        logits = logits.sigmoid()
    found = evaluate(logits, targets)
    logits, targets = logits[targets != IGNORE].numpy(), targets[targets != IGNORE].numpy()
    order = np.argsort(-logits, 1)
    probabilities = np.exp(logits.astype(np.float64))
    probabilities /= probabilities.sum(1, keepdims=True)
    confusion = np.zeros((CLASSES, CLASSES), int)
    np.add.at(confusion, (targets, order[:, 0]), 1)
    assert np.array_equal(found.confusion, confusion)
    assert found.images == len(targets) == 180
    assert found.top1 == np.mean(order[:, 0] == targets)
    near = (order[:, :5] == targets[:, None]).any(1)
    assert found.top5 == near.mean()
    assert found.in_top5.tolist() == [near[targets == number].sum() for number in range(CLASSES)]
    assert found.loss == pytest.approx(-np.log(probabilities[np.arange(180), targets]).mean(), rel=1e-12)
    confidence = probabilities.max(1).astype(np.float32).astype(np.float64)  # kept so; the sums are not
    right = order[:, 0] == targets
    bins = np.floor(confidence * 15)
    gaps = [abs(confidence[bins == b].mean() - right[bins == b].mean()) * (bins == b).mean() for b in np.unique(bins)]
    assert found.calibration_error == pytest.approx(sum(gaps), rel=1e-12, abs=0)
    theirs = multiclass_calibration_error(torch.tensor(probabilities), torch.tensor(targets), CLASSES, n_bins=15)
    assert found.calibration_error == pytest.approx(float(theirs), rel=1e-5)


def test_batches_and_order_do_not_show():
    logits, targets = 3 * torch.randn(5000, CLASSES), torch.randint(CLASSES, (5000,))
    one, other = evaluate(logits, targets), evaluate(logits.flip(0), targets.flip(0), 50)
    assert np.array_equal(one.confusion, other.confusion)
    assert np.array_equal(one.in_top5, other.in_top5)
    assert other.loss == pytest.approx(one.loss, rel=1e-13, abs=0)
    assert other.calibration_error == pytest.approx(one.calibration_error, rel=1e-13, abs=0)


@pytest.mark.parametrize("batch_size", [16, 203])
def test_the_images_that_it_is_most_wrong_about(drawn, batch_size):
    logits, targets = drawn
    found = evaluate(logits, targets, batch_size).mistakes
    loss = torch.nn.functional.cross_entropy(logits.double(), targets, ignore_index=IGNORE, reduction="none")
    loss[(logits.argmax(1) == targets) | (targets == IGNORE)] = 0
    worst = loss.argsort(descending=True)[:24]
    assert torch.equal(found.images, logits[worst][:, None, None].expand(-1, 3, 1, -1))
    assert torch.equal(found.classes, targets[worst]) and torch.equal(found.taken_for, logits[worst].argmax(1))
    assert torch.allclose(found.confidence, logits[worst].double().softmax(1).max(1)[0])


def test_images_that_are_all_taken_for_what_they_are():
    found = evaluate(torch.eye(CLASSES), torch.arange(CLASSES)).mistakes
    assert [len(part) for part in (found.images, found.classes, found.taken_for, found.confidence)] == [0] * 4


def test_sums_keep_their_precision_where_the_network_has_less(drawn):
    evaluator = Evaluator(Told(), CLASSES, 256).to(torch.bfloat16)
    logits, targets = drawn
    evaluator.validation_step(Batch(logits[:, None, None].expand(-1, 3, 1, -1), targets, None), 0)
    evaluator.on_validation_epoch_end()
    rounded = evaluate(logits.bfloat16().float(), targets)
    assert evaluator.found.loss == pytest.approx(rounded.loss, rel=1e-14)
    assert evaluator.found.calibration_error == pytest.approx(rounded.calibration_error, rel=1e-14)


def test_a_row_a_class():
    confusion = np.array([[6, 1, 3, 0], [0, 0, 0, 0], [2, 2, 0, 0], [0, 0, 0, 5]])
    found = Evaluation(confusion, np.array([9, 0, 4, 5]), 0.5, 0.1, None)
    assert (found.images, found.top1, found.top5) == (19, 11 / 19, 18 / 19)
    columns = ("class", "images", "top1", "top5", "precision", "taken_for", "taken_for_images")
    assert [tuple(row[column] for column in columns) for row in found.per_class(["a", "b", "c", "d"])] == [
        ("a", 10, 0.6, 0.9, 6 / 8, "c", 3),
        ("b", 0, None, None, 0.0, None, 0),
        ("c", 4, 0.0, 1.0, 0.0, "a", 2),
        ("d", 5, 1.0, 1.0, 1.0, None, 0),
    ]


@pytest.mark.parametrize("wrong", [0, 1, 2])
def test_of_few_mistakes_each_is_kept(wrong):
    targets = torch.arange(6)
    logits = 9.0 * torch.eye(6, CLASSES)
    logits[:wrong] = logits[:wrong].roll(1, 1)
    found = evaluate(logits, targets).mistakes
    assert len(found.images) == wrong
    assert (found.classes.tolist(), found.taken_for.tolist()) == (list(range(wrong)), list(range(1, wrong + 1)))
