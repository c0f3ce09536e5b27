"""What may be asked of images, and in which words it is refused."""

import math

import pytest
from timm.data import create_transform

from esformer.data.base import DataError
from esformer.data.datamodule import EvaluationDataModule
from esformer.data.datasets import INTERPOLATIONS, RANGES, DataConfig, check_memory, check_preparation

HUGE = 10**30
REFUSED = {
    "mean": ([math.nan, 0, 0], [math.inf, 0, 0], [1e300, 0, 0], [123.7, 116.3, 103.5], [0, 0], [], [-0.1, 0, 0]),
    "std": ([0, 1, 1], [1, math.nan, 1], [1, 1, -1], [1, 1e-30, 1], [58.4, 57.1, 57.4], [1], [1e300] * 3),
    "interpolation": ("cubic", "", "BICUBIC"),
    "crop_pct": (0, -1, 1e-9, math.nan, math.inf, 1.01),
    "crop_scale": ([0, 1], [0.5, 0.1], [math.nan, 1], [0.1, 2], [1e-30, 1e-30], [1]),
    "crop_ratio": ([0, 1], [1e-300, 1e300], [1, math.inf], [2, 1], [math.nan, math.nan]),
    "hflip": (-0.1, 1.1, math.nan),
    "timeout": (math.inf, math.nan, 1e300, 1e9, 0, -1),
    "img_size": (99_999, HUGE, 31, -1),
    "num_classes": (10**12, 0),
    "workers": (100_000, HUGE, -1),
    "train_images": (10**12, 0),
    "val_images": (10**12, 0),
    "limit": (HUGE, 0),
    "max_corrupt": (HUGE, -1),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in REFUSED for value in REFUSED[name]])
def test_settings_that_cannot_be(name, value):
    with pytest.raises(DataError, match=rf"^{name} is .*; it must be ") as error:
        DataConfig(**{name: value})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("is_training", [True, False])
def test_every_interpolation_resizes(interpolation, is_training):
    from PIL import Image

    resized = create_transform(32, is_training=is_training, interpolation=interpolation, use_prefetcher=True)
    assert resized(Image.new("RGB", (50, 40))).shape == (3, 32, 32)


PREPARED = dict(mean=(0.5, 0.5, 0.5), std=[0.2, 0.2, 0.2], interpolation="bicubic", crop_pct=0.9)
ODD = [
    *[{"mean": value} for value in ("none", None, 0.5, ["0", "0", "0"], [True, 0, 0], {0: 0, 1: 0, 2: 0}, [[0]] * 3)],
    *[{"std": value} for value in ("none", None, [0, 0, 0], [0.2, 0.2], [None] * 3)],
    *[{"interpolation": value} for value in (None, 3, [], ["bicubic"])],
    *[{"crop_pct": value} for value in (None, "0.9", [0.9], True)],
]


@pytest.mark.parametrize("odd", ODD, ids=str)
def test_a_loaded_file_may_say_anything_of_its_preparation(odd):
    check_preparation(**PREPARED)
    check_preparation(**PREPARED, channels=None)
    with pytest.raises(DataError, match=rf"^{next(iter(odd))} is .*; it must be "):
        check_preparation(**PREPARED | odd)


def test_a_preparation_is_for_as_many_channels_as_images_have():
    one = PREPARED | {"mean": [0.5], "std": [0.5]}
    check_preparation(**one, channels=1)
    check_preparation(**one, channels=None)
    with pytest.raises(DataError, match="mean is .* 3 numbers"):
        check_preparation(**one)
    with pytest.raises(DataError, match=r"std is \[0.5\]; it must be 3 numbers"):
        check_preparation(**PREPARED | {"std": [0.5]}, channels=None)


def test_the_longest_timeout_is_one_for_the_operating_system():
    config = DataConfig("digits", img_size=32, num_classes=10, workers=1, timeout=RANGES["timeout"][1])
    data = EvaluationDataModule(config, batch_size=360)
    data.setup("validate")
    assert next(iter(data.val_dataloader())).images.shape == (360, 32, 32, 3)


def test_batches_that_no_memory_holds(monkeypatch):
    check_memory(DataConfig(workers=4), 1024)
    monkeypatch.setattr("os.sysconf", {"SC_PHYS_PAGES": 6 * 2**20, "SC_PAGE_SIZE": 4096}.get)
    large = DataConfig("synthetic", img_size=2048, workers=4)
    message = (
        r"^10 batches of 1024 images of 2048 pixels take 129 GB, and this machine has 26: data.img_size=896 would fit,"
        r" or smaller batches \(trainer.accumulate\) or fewer data.workers$"
    )
    with pytest.raises(DataError, match=message):
        EvaluationDataModule(large, 1024).setup("validate")
    check_memory(DataConfig(img_size=896, workers=4), 1024)
    with pytest.raises(DataError, match="10 batches of 1000000000 images .* has 26: smaller batches"):
        check_memory(large, 10**9)
