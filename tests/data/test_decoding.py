"""Decoding by torchvision: PIL's pixels, PIL's refusals, timm's crops."""

import io
import random
import warnings
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets
import torch
from PIL import Image
from torchvision.transforms import v2

from esformer.data.base import CorruptImage, DataError
from esformer.data.datamodule import EvaluationDataModule, ImageDataModule, SampleIndex, seed_all
from esformer.data.datasets import DataConfig, resolve
from esformer.data.decoding import _has_decoder, decode_jpeg, training_transform
from esformer.data.images import ImageFileDataset, build, decode
from esformer.recipe import Recipe

PHOTOS = sorted((Path(sklearn.datasets.__file__).parent / "images").glob("*.jpg"))


def encoded(image, kind="JPEG", **settings):
    image.save(file := io.BytesIO(), kind, **settings)
    return file.getvalue()


@pytest.fixture(scope="module")
def photo():
    return Image.open(PHOTOS[0]).convert("RGB")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Both photographs of scikit-learn in tiles: as JPEG for training, as PNG too for validation."""
    root = tmp_path_factory.mktemp("photos")
    for label, path in enumerate(PHOTOS):
        image = Image.open(path).convert("RGB")
        for number in range(6):
            tile = image.crop((100 * number, 40 * number, 100 * number + 133, 40 * number + 180 + number))
            for split, kinds in (("train", ["JPEG"]), ("val", ["JPEG", "PNG"])):
                (root / split / str(label)).mkdir(parents=True, exist_ok=True)
                for kind in kinds:
                    tile.save(root / split / str(label) / f"{number}.{kind.lower()}", kind)
    return root


def test_the_pixels_are_pils(photo):
    assert len(PHOTOS) == 2
    data = [path.read_bytes() for path in PHOTOS]
    for subsampling in (0, 1, 2):
        data += [encoded(photo, subsampling=subsampling, progressive=p, quality=60) for p in (False, True)]
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned, which nobody does
    data += [encoded(photo, exif=exif), encoded(photo.crop((0, 0, 17, 5))), data[0] + b"something behind it"]
    for each in data:
        assert np.array_equal(decode_jpeg(each).permute(1, 2, 0), decode(each))


def test_what_is_not_a_plain_colour_jpeg_is_left_to_pil(photo, monkeypatch):
    others = [encoded(photo.convert(mode)) for mode in ("L", "CMYK")]
    others += [encoded(photo, kind) for kind in ("PNG", "WEBP", "GIF")] + [b"", b"text", encoded(photo)[:5000]]
    assert [decode_jpeg(data) for data in others] == [None] * len(others)
    good = encoded(photo)
    monkeypatch.setattr("esformer.data.decoding.PIXELS", photo.width * photo.height)
    assert decode_jpeg(good) is not None
    monkeypatch.setattr("esformer.data.decoding.PIXELS", photo.width * photo.height - 1)
    assert decode_jpeg(good) is None
    monkeypatch.undo()
    monkeypatch.delattr("torchvision.io.decode_jpeg")  # it is to go some day
    assert decode_jpeg(good) is None


@pytest.mark.parametrize("progressive", [False, True])
def test_what_pil_refuses_is_refused_and_what_it_tolerates_has_its_pixels(photo, progressive, capfd):
    whole = encoded(photo.crop((200, 100, 360, 220)), progressive=progressive)
    rng = random.Random(0)
    broken = [whole[: rng.randrange(1, len(whole))] for _ in range(60)] + [whole[:-n] for n in range(1, 40)]
    for end in (700, len(whole)):  # in the header, and anywhere
        for _ in range(150):
            place = rng.randrange(end)
            broken.append(whole[:place] + bytes([whole[place] ^ 1 << rng.randrange(8)]) + whole[place + 1 :])
    for size in (1, 30, 300):
        for place in (rng.randrange(len(whole) - size) for _ in range(20)):
            broken += [whole[:place] + bytes(size) + whole[place + size :], whole[:place] + whole[place + size :]]
    taken = refused = 0
    for data in broken:
        fast = decode_jpeg(data)
        try:
            pixels = decode(data)
        except CorruptImage:
            assert fast is None
            refused += 1
        else:
            if fast is not None:
                assert np.array_equal(fast.permute(1, 2, 0), pixels)
                taken += 1
    assert refused > 100 and taken > 100
    capfd.readouterr()  # libjpeg's warnings


def both(root, auto_augment=None, **settings):
    """The data with either decoder."""
    for decoder in ("pil", "torchvision"):
        config = DataConfig("folder", str(root), num_classes=None, workers=0, decoder=decoder, **settings)
        data = ImageDataModule(
            resolve(config), Recipe(epochs=1, warmup_epochs=0, batch_size=2, auto_augment=auto_augment)
        )
        data.setup("fit")
        yield data


def pairs(root, auto_augment=None, **settings):
    pil, fast = both(root, auto_augment, **settings)
    places = [SampleIndex(epoch, number, number) for epoch in range(5) for number in range(12)]
    yield from ((pil.train_set[place].image, fast.train_set[place].image) for place in places)
    yield from ((pil.val_set[place].image, fast.val_set[place].image) for place in places[:12])


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "random"])
@pytest.mark.parametrize("img_size", [96, 224])
def test_crops_and_flips_are_timms_to_within_rounding(photos, interpolation, img_size):
    share = []
    for pil, fast in pairs(photos, interpolation=interpolation, img_size=img_size):
        assert pil.shape == fast.shape == (img_size, img_size, 3)
        assert pil.is_contiguous() and fast.is_contiguous() and pil.dtype == fast.dtype == torch.uint8
        difference = (pil.int() - fast.int()).abs()
        assert difference.max() <= 16 and (difference > 1).float().mean() < 0.01  # Pillow 13 resizes some heights first
        share.append((difference > 0).float().mean())
    assert 0 < sum(share) / len(share) < 0.05  # it was torchvision, and another crop would differ everywhere


def test_randaugment_is_timms(photos):
    difference = [
        (pil.int() - fast.int()).abs().float().mean() for pil, fast in pairs(photos, "rand-m7-n1", img_size=64)
    ]
    assert max(difference) < 2  # posterising or equalising makes more of a 1
    assert sum(difference) / len(difference) < 0.1
    steps = [type(step).__name__ for step in training_transform(DataConfig(), "rand-m7-n1").transforms]
    assert steps == ["ResizedCrop", "RandomHorizontalFlip", "function", "RandAugment", "function"]


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_crops_are_not_turned_to_channels_first(photo, interpolation):
    crop, *_ = training_transform(DataConfig(interpolation=interpolation), None).transforms
    image = decode_jpeg(encoded(photo))
    for number in range(10):
        seed_all(number)
        box = crop.get_params(image, crop.scale, crop.ratio)
        seed_all(number)
        cropped = crop(image)
        assert cropped.permute(1, 2, 0).is_contiguous()
        expected = v2.functional.resized_crop(image.contiguous(), *box, [224, 224], crop.interpolation)
        assert torch.equal(cropped, expected)


def test_a_torchvision_without_a_decoder_is_refused(photos, monkeypatch):
    settings = dict(root=str(photos), num_classes=2, img_size=32)
    _has_decoder.cache_clear()
    monkeypatch.delattr("torchvision.io.decode_jpeg")
    try:
        with pytest.raises(DataError, match=r"^torchvision \S+ decodes no JPEGs here; data\.decoder=pil does$"):
            EvaluationDataModule(DataConfig("folder", **settings), batch_size=4).setup("validate")
        for other in (dict(decoder="pil"), dict(interpolation="lanczos")):
            EvaluationDataModule(DataConfig("folder", **settings, **other), batch_size=4).setup("validate")
        EvaluationDataModule(DataConfig("digits", img_size=32, num_classes=10), batch_size=4).setup("validate")
    finally:
        _has_decoder.cache_clear()


def test_nothing_warns_that_the_decoder_is_deprecated(photo):
    with warnings.catch_warnings(action="error"):
        assert _has_decoder.__wrapped__()
        assert decode_jpeg(encoded(photo)) is not None


@pytest.mark.parametrize("interpolation", ["nearest", "lanczos"])
def test_what_torchvision_resizes_otherwise_is_left_to_pil(photos, interpolation):
    augmented = pairs(photos, "rand-m7-n1", interpolation=interpolation, img_size=64)
    assert all(torch.equal(*pair) for pair in augmented)


def test_other_files_are_as_with_pil(photos):
    pil, fast = both(photos, img_size=64)
    for number in range(24):
        same = torch.equal(*(data.val_set[SampleIndex(0, number, number)].image for data in (pil, fast)))
        assert same == pil.val_set.dataset.name_of(number).endswith(".png"), number


def test_images_in_memory_are_as_with_pil():
    one, other = (
        ImageDataModule(DataConfig("digits", img_size=32, num_classes=10, decoder=decoder), Recipe())
        for decoder in ("pil", "torchvision")
    )
    for data in (one, other):
        data.setup("fit")
    for number in range(5):
        assert torch.equal(*(data.train_set[SampleIndex(1, number, number)].image for data in (one, other)))


def test_the_random_draws_are_those_of_timm(photos):
    config = DataConfig("folder", str(photos), num_classes=2, img_size=32)
    states = []
    for decoder in ("pil", "torchvision"):
        dataset = build(DataConfig(**vars(config) | {"decoder": decoder}), True, training_transform(config, None))
        assert isinstance(dataset, ImageFileDataset) and dataset.fast == (decoder == "torchvision")
        seed_all(3)
        dataset[0]
        states.append((random.getstate(), torch.get_rng_state().tolist()))
    assert states[0] == states[1]


def test_random_interpolation_is_bicubic_in_evaluation(photos):
    random_, bicubic = (
        EvaluationDataModule(
            DataConfig("folder", str(photos), num_classes=2, img_size=32, interpolation=interpolation), batch_size=4
        )
        for interpolation in ("random", "bicubic")
    )
    for data in (random_, bicubic):
        data.setup("validate")
    assert torch.equal(random_.val_set[SampleIndex(0, 3, 3)].image, bicubic.val_set[SampleIndex(0, 3, 3)].image)
    assert random_.describe()["interpolation"] == "bicubic"  # timm knows no other
