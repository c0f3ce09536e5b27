"""What is said of weights: which they are, and whether they were ever trained."""

import logging
from dataclasses import replace

import pytest
import torch

from esformer.checkpoint import CheckpointError, load, open_checkpoint
from esformer.checkpoint.loading import network_of, opened

HEAD = "head.weight"


def test_a_digest_is_of_the_weights_alone_wherever_they_lie(known, tmp_path):
    known.save(tmp_path / "w.safetensors")
    digest = known.digest()
    assert len(digest) == 16 and int(digest, 16)
    assert open_checkpoint(tmp_path / "w.safetensors").digest() == digest != known.digest(ema=False)
    backwards = dict(reversed(known.averaged.items()))
    strided = {
        name: value.to(memory_format=torch.channels_last) if value.ndim == 4 else value
        for name, value in known.averaged.items()
    }
    for weights in (backwards, strided):
        assert replace(known, averaged=weights, metrics={}).digest() == digest


@pytest.mark.parametrize(
    "change",
    [
        lambda weight: weight.index_fill(0, torch.tensor([9]), 0),
        lambda weight: weight.reshape(weight.shape[::-1]),
        lambda weight: weight.view(torch.int32),
        None,
    ],
)
def test_a_digest_tells_other_weights(change, known):
    weights = dict(known.averaged)
    weight = weights.pop(HEAD)
    weights |= {HEAD: change(weight)} if change else {"head.other": weight}
    assert replace(known, averaged=weights).digest() != known.digest()


def test_a_digest_of_weights_that_were_not_kept(known):
    with pytest.raises(CheckpointError, match="averaged weights only"):
        replace(known, raw=None).digest(ema=False)


def test_random_weights_stay_random_in_a_file(known, tmp_path, caplog):
    logging.getLogger("esformer").propagate = True
    named = opened("efficientformerv2_s0")
    assert named.random and named.describe()["weights"] == named.describe(ema=False)["weights"] == "random"
    named.save(tmp_path / "w.safetensors")
    found = opened(str(tmp_path / "w.safetensors"))
    assert found.random and found.describe() == named.describe() and found.digest() == named.digest()
    told = [record.getMessage() for record in caplog.records]
    words = "its weights are random, of a network that was never trained"
    assert told == [f"efficientformerv2_s0: {words}", f"{tmp_path}/w.safetensors: {words}"]


def test_what_is_opened_by_a_name_is_what_load_gives():
    torch.manual_seed(1)
    found = opened("esformer_s0")
    torch.manual_seed(1)
    network = load("esformer_s0")
    assert (found.num_classes, found.in_chans, found.img_size) == (1000, 3, (224, 224))
    image = torch.randn(1, 3, 224, 224)
    assert torch.equal(network_of(found)(image), network(image))


def test_trained_weights_are_opened_without_a_word(trained, known, caplog):
    logging.getLogger("esformer").propagate = True
    found = opened(str(trained))
    assert not found.random and found.describe() == known.describe() and not caplog.records


def test_nothing_is_opened_of_a_name_that_is_none():
    with pytest.raises(CheckpointError, match="nowhere is neither a file nor one of"):
        opened("nowhere")
