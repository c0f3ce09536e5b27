import json

from esformer.export.metadata import metadata, of_channels

KNOWN = {"name": "folder", "classes": ["a b", "\u00fc"], "mean": [0.5, 0.25, 0.75], "std": [1, 1, 1]}


def test_what_an_app_needs_stands_by_itself():
    about = {"img_size": [64, 96], "in_chans": 3, "data": KNOWN}
    found = {key: json.loads(text) for key, text in metadata(about).items()}
    assert found.pop("esformer") == about
    wanted = {"image_size": [64, 96], "image_mean": KNOWN["mean"], "image_std": KNOWN["std"]}
    assert found == wanted | {"class_names": KNOWN["classes"]}


def test_what_is_not_known_is_left_out():
    assert metadata({"img_size": [32, 32], "in_chans": 3, "data": {}}).keys() == {"esformer", "image_size"}


def test_a_mean_of_other_channels_is_averaged():
    assert json.loads(metadata({"img_size": [32, 32], "in_chans": 1, "data": KNOWN})["image_mean"]) == [0.5]
    assert of_channels((1.0, 2.0), 2) == [1.0, 2.0] and of_channels([1.0, 3.0], 3) == [2.0] * 3
