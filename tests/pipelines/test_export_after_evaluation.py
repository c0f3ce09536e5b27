"""What an export says of an evaluation, which may be of other weights than those that are there now."""

import json
from pathlib import Path

import pytest
import torch

import esformer
from esformer.checkpoint import open_checkpoint, save_weights
from esformer.errors import ESFormerError
from pipelines import evaluate, export


@pytest.fixture(scope="module")
def weights(smallest, randomise):
    """Raw and averaged, as timm's scripts keep them."""
    genotype = esformer.Genotype.load(smallest)
    networks = [randomise(esformer.ESFormer(genotype, num_classes=10, img_size=32)) for _ in range(2)]
    return dict(zip(("state_dict", "state_dict_ema"), (network.state_dict() for network in networks), strict=True))


@pytest.fixture
def checkpoint(weights, tmp_path):
    torch.save(weights, tmp_path / "last.pth")
    return tmp_path / "last.pth"


@pytest.fixture
def evaluated(checkpoint):
    """The same, of which an evaluation left a figure."""
    folder = checkpoint.with_name("last-evaluation")
    folder.mkdir()
    found = {"weights_digest": open_checkpoint(checkpoint).digest(), "data": {"name": "digits", "img_size": 32}}
    (folder / "evaluation.json").write_text(json.dumps(found | {"top1": 0.6875, "images": 4321}))
    return checkpoint


def on_card(checkpoint, *options):
    """Whether the figure is on the card."""
    card = Path(export.main([str(checkpoint), "--to", "safetensors", *options])["card"]).read_text()
    return "68.75%" in card and "4,321 validation images of digits" in card


@pytest.mark.nightly
def test_an_evaluation_is_on_the_card_until_the_weights_change(checkpoint, weights):
    images = ["data=digits", "data.limit=40", "data.workers=0", "trainer.accelerator=cpu"]
    report = evaluate.main([str(checkpoint), *images])
    assert report["weights_digest"] == open_checkpoint(checkpoint).digest()
    card = Path(export.main([str(checkpoint), "--to", "safetensors"])["card"])
    assert f"| top-1 | {report['top1']:.2%} |" in card.read_text()
    other = weights["state_dict_ema"] | {"head.bias": weights["state_dict_ema"]["head.bias"] + 1e-3}
    torch.save(weights | {"state_dict_ema": other}, checkpoint)
    export.main([str(checkpoint), "--to", "safetensors"])
    assert "| top-1 |" not in card.read_text() and "Top-1 and top-5 are not recorded" in card.read_text()


def test_it_is_on_the_card_of_the_same_weights_at_the_same_size_alone(evaluated):
    assert on_card(evaluated)
    assert not on_card(evaluated, "--raw")
    assert not on_card(evaluated, "--img-size", "64")
    assert on_card(evaluated, "--img-size", "32")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weights_digest": 3}', "[" * 200_000])
def test_what_is_no_evaluation_is_left_out(evaluated, text):
    (evaluated.parent / "last-evaluation" / "evaluation.json").write_text(text)
    assert not on_card(evaluated)


def test_a_checkpoint_for_images_that_are_too_large(checkpoint, tmp_path):
    large = tmp_path / "large.safetensors"
    about = open_checkpoint(checkpoint).describe() | {"img_size": [32, 4096]}
    save_weights(large, esformer.load(checkpoint, img_size=(32, 4096)).state_dict(), about)
    with pytest.raises(ESFormerError, match="images have 4,096 pixels; they must be whole numbers of 32 to 2,048"):
        export.main([str(large), "--to", "safetensors", "--out", str(tmp_path / "x.safetensors")])
    assert not (tmp_path / "x.safetensors").exists()
