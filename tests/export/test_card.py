import re

import pytest
import yaml

from esformer.export.card import front_matter, model_card
from esformer.genotype import Genotype
from esformer.model.cost import cost

GENOTYPE = Genotype.shipped("esformer_s0")
ABOUT = {
    "format": 3,
    "version": "0.1.0+abc1234",
    "weights": "averaged",
    "genotype": GENOTYPE.to_dict(),
    "num_classes": 3,
    "in_chans": 3,
    "img_size": [64, 96],
    "recipe": {"epochs": 7, "lr": 2e-3, "auto_augment": None},
    "data": {
        "name": "folder",
        "classes": ["cat", "do|g", "owl"],
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.2, 0.1],
        "interpolation": "bicubic",
        "crop_pct": 0.9,
    },
    "metrics": {"val/top1": 0.5, "val/ema_top1": 0.625, "val/ema_top5": 1.0, "val/loss": 1.25},
    "provenance": {"command": "python -m pipelines.full", "search_score": {"entropic_score": 12.5}},
}
UNKNOWN = {"version": None, "recipe": {}, "data": {}, "metrics": {}, "provenance": {}}


def card(license=None, evaluation={}, is_graph=False, **changes):
    return model_card(ABOUT | changes, "network = ...", "network.png", is_graph, license, evaluation)


def test_it_says_what_is_known():
    price = cost(GENOTYPE, (64, 96), 3)
    text = card()
    for words in (
        f"| parameters | {price.params:,} |",
        f"| multiply-accumulates of one image | {price.macs:,} |",
        "| image | 64 x 96 pixels, 3 channels |",
        "| classes | 3: cat, do\\|g, owl |",
        GENOTYPE.digest,
        "0.1.0+abc1234",
        "![the network, block by block](network.png)",
        "```python\nnetwork = ...\n```",
        "(bicubic), the central 90% of each side kept",
        "mean 0.5, 0.4, 0.3 subtracted, divided by 0.2, 0.2, 0.1",
        "On the validation images of folder, at 64 x 96 pixels",
        "| epochs | 7 |\n| lr | 0.002 |\n| auto_augment | None |",
        "| command | python -m pipelines.full |\n| search_score.entropic_score | 12.5 |",
        "Not stated.",
        "(folder)",
    ):
        assert words in text, words
    assert "not recorded" not in text and "folded" not in text


def test_accuracy_is_that_of_the_weights():
    assert "| top-1 | 62.50% |\n| top-5 | 100.00% |" in card() and "50.00%" not in card()
    assert "| top-1 | 50.00% |\n| cross-entropy | 1.2500 |" in card(weights="raw") and "62.50%" not in card(
        weights="raw"
    )
    evaluation = {"top1": 0.75, "loss": 0.5, "calibration_error": 0.1, "images": 1234, "data": {"name": "cifar10"}}
    text = card(evaluation=evaluation, metrics={})
    assert (
        "on 1,234 validation images of cifar10" in text
        and "| top-1 | 75.00% |\n| cross-entropy | 0.5000 |\n| calibration error" in text
    )


def test_what_is_not_known_is_said_to_be_not_recorded():
    text = card(**UNKNOWN)
    for words in (
        "| classes | 3: names not recorded |",
        "| code | not recorded |",
        "How they were prepared is not recorded.",
        "Top-1 and top-5 are not recorded.",
        "Images: not recorded",
        "Recipe: not recorded.",
        "genotype comes from is not recorded.",
        "- Its accuracy is not recorded.",
    ):
        assert words in text, words


def test_another_size_and_folding_are_limits():
    provenance = {"trained_img_size": [32, 32]}
    text = card(provenance=provenance, folded=True)
    assert "Trained on images of 32 x 32 pixels" in text and "accuracy here was not measured" in text
    assert "On the validation images of folder, at 32 x 32 pixels" in text and "not to be trained on" in text
    assert "not measured." in text.split("Trained on")[1].splitlines()[0]
    assert "accuracy here" not in card(
        provenance=provenance, evaluation={"top1": 0.5, "images": 1, "data": {"name": "digits"}}
    )


def test_random_weights_promise_nothing():
    text = card(weights="random", metrics={"val/top1": 0.9})
    assert "never trained" in text and "90" not in text.split("## Accuracy")[1] and "outputs mean nothing" in text


@pytest.mark.parametrize("is_graph", [True, False])
def test_only_a_graph_needs_another_export_for_another_size(is_graph):
    text = card(is_graph=is_graph)
    assert ("another size needs another export." in text) == is_graph
    assert ("another size is asked for with `img_size`" in text) != is_graph


@pytest.mark.parametrize(
    ("chans", "words"),
    [
        (1, "B x 1 x 64 x 96: .* mean 0.4 subtracted, divided by 0.166667\\."),
        (4, "mean 0.4, 0.4, 0.4, 0.4 subtracted, divided by 0.166667, 0.166667, 0.166667, 0.166667\\."),
    ],
)
def test_other_channels_have_the_mean_of_the_colours(chans, words):
    assert re.search(words, card(in_chans=chans))


@pytest.mark.parametrize("license", [None, "apache-2.0", "a: [b"])
def test_the_licence_is_what_its_owner_says(license):
    head = front_matter(license)
    words = yaml.safe_load(head.strip().strip("-"))
    assert words["license"] == (license or "unknown") and words["library_name"] == "timm"
    assert words["pipeline_tag"] == "image-classification" and "timm" in words["tags"]
    licence = card(license=license).split("## Licence\n\n")[1].splitlines()[0]
    assert licence == (license or "Not stated. Ask whoever gave you this file what you may do with it.")


def test_no_classifier():
    text = card(num_classes=0)
    assert "| classes | none |" in text and "no classifier" in text


def test_what_comes_from_data_is_shown_as_text():
    evil = [
        "<script>alert(1)</script>",
        "[x](javascript:alert(1))",
        "![x](http://evil/x.png)",
        "\x1b[31mred\x1b]0;title\x07",
        "a\n\n# heading\n---\nlicense: mit",
        "| a | b |",
        "`code` **bold** ~~gone~~ $x$",
        "\u202eleft\udcff",
        "x" * 10_000,
        "&lt;",
    ]
    about = ABOUT | {
        "num_classes": len(evil),
        "data": ABOUT["data"] | {"classes": evil, "name": evil[0] + evil[1]},
        "provenance": {evil[5]: evil[3], "deep": {evil[0]: evil[4]}},
        "recipe": {evil[1]: evil[6]},
        "version": evil[2],
    }
    found = {"images": 3, "top1": 0.5, "data": about["data"]}
    text = model_card(about, "usage", "a b](x).png", False, evil[4], found)
    text.encode()
    forbidden = ["<script", "](javascript", "![x]", "\x1b", "\x07", "\u202e", "`code`", "**bold", "~~gone", "](x)"]
    for word in (*forbidden, "x" * 200):
        assert word not in re.sub(r"\\.", "", text), word  # but for what a backslash makes a mere letter
    assert not [line for line in text.splitlines() if line in ("# heading", "---", "license: mit")]
    for line in text.splitlines():
        if line.startswith("|"):
            assert line.replace("\\|", "").count("|") == 3, line
