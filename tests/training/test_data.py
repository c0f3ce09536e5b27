"""The images: what they are, in which order they come, and that none is counted twice."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from esformer.training.data import IGNORE, EpochSampler, ImageDataModule, Padded, Seeded, device_batch_size
from esformer.training.datasets import DataConfig, DataError, resolve
from esformer.training.images import build
from esformer.training.recipe import Recipe


def digits(workers=0, **recipe):
    config = DataConfig("digits", img_size=32, num_classes=10, workers=workers)
    return ImageDataModule(config, Recipe(epochs=2, warmup_epochs=0, batch_size=64, **recipe))


@pytest.fixture
def image_folder(tmp_path):
    """Twelve training and seven validation images of two classes, of uneven sizes."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 3)):
        for label in ("cat", "dog"):
            (tmp_path / split / label).mkdir(parents=True)
            for i in range(count + (split == "val" and label == "dog")):
                pixels = rng.integers(0, 255, (40 + i, 50, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / label / f"{i}.png")
    return tmp_path


def test_a_fifth_of_the_digits_is_held_out():
    train, val = (build(DataConfig("digits"), split, lambda image: image) for split in (True, False))
    assert (len(train), len(val)) == (1437, 360)
    assert len({image.tobytes() for image in map(np.asarray, (v[0] for v in map(val.__getitem__, range(360))))}) > 350
    seen = {np.asarray(train[i][0]).tobytes() for i in range(len(train))}
    assert not any(np.asarray(val[i][0]).tobytes() in seen for i in range(len(val)))
    assert sorted({val[i][1] for i in range(360)}) == list(range(10))


def test_batches_are_what_a_network_takes():
    data = digits()
    data.setup("fit")
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (64, 3, 32, 32)
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert len(data.train_dataloader()) == 1437 // 64  # the rest is dropped, for Mixup pairs images


def test_augmentation_depends_on_epoch_and_image_alone():
    def epoch(number, workers):
        data = digits(workers, auto_augment="rand-m9-n1", random_erasing=0.25)
        data.setup("fit")
        sampler = EpochSampler(data.train_set, 1, 0, seed=0, drop_last=True)
        sampler.set_epoch(number)
        loader = DataLoader(data.train_set, 64, sampler=sampler, num_workers=workers)
        return torch.stack([images for (images, _), _ in zip(loader, range(3), strict=False)])

    torch.manual_seed(1)
    first = epoch(4, workers=0)
    torch.manual_seed(2)
    assert torch.equal(first, epoch(4, workers=2))
    assert not torch.equal(first, epoch(5, workers=0))


def test_a_resumed_epoch_starts_with_its_own_order():
    data = digits()
    data.trainer = SimpleNamespace(world_size=1, global_rank=0, current_epoch=3)
    data.setup("fit")
    loader = data.train_dataloader()
    assert (loader.sampler.epoch, data.train_set.epoch) == (3, 3)


def test_loading_leaves_the_random_state_alone():
    data = digits(auto_augment="rand-m9-n1")
    data.setup("fit")
    torch.manual_seed(3)
    before = torch.get_rng_state()
    data.train_set[0]
    assert torch.equal(before, torch.get_rng_state())


def test_no_validation_image_is_counted_twice():
    padded = Padded(Seeded([(torch.zeros(1), label) for label in range(7)], 0), multiple=3)
    labels = [padded[i][1] for i in range(len(padded))]
    assert labels == [0, 1, 2, 3, 4, 5, 6, IGNORE, IGNORE]


@pytest.mark.parametrize(("world", "accumulate", "each"), [(1, 1, 1024), (8, 1, 128), (4, 2, 128), (64, 8, 2)])
def test_the_batch_is_global(world, accumulate, each):
    assert device_batch_size(1024, world, accumulate) == each


def test_a_batch_that_does_not_divide_is_refused_with_one_that_would():
    with pytest.raises(DataError, match="batch_size=1024 .* 6 devices x 1 accumulated; 1020 would"):
        device_batch_size(1024, 6, 1)
    assert device_batch_size(1020, 6, 1) == 170


def test_image_folder(image_folder):
    config = resolve(DataConfig("folder", str(image_folder), img_size=32, num_classes=None))
    assert config.num_classes == 2
    train, val = (build(config, split, lambda image: image) for split in (True, False))
    assert (len(train), len(val)) == (12, 7)
    assert [label for _, label in val] == [0, 0, 0, 1, 1, 1, 1]


def test_imagenet_is_found_by_its_environment_variable(image_folder, monkeypatch):
    monkeypatch.setenv("IMAGENET", str(image_folder))
    assert resolve(DataConfig(num_classes=2)).root == str(image_folder)


def test_missing_images_are_explained(image_folder, monkeypatch, tmp_path):
    monkeypatch.delenv("IMAGENET", raising=False)
    with pytest.raises(DataError, match=r"data\.root=FOLDER \(or set the environment variable IMAGENET\).*--quick"):
        resolve(DataConfig())
    with pytest.raises(DataError, match="which is not a folder"):
        resolve(DataConfig("folder", str(tmp_path / "nowhere")))
    with pytest.raises(DataError, match="must be imagenet, folder, cifar10 or digits"):
        resolve(DataConfig("mnist"))
    with pytest.raises(DataError, match="has 2 classes, but data.num_classes is 1000"):
        resolve(DataConfig("folder", str(image_folder)))
    (image_folder / "val" / "emu").mkdir()
    with pytest.raises(DataError, match="different classes: 'emu' is in only one"):
        resolve(DataConfig("folder", str(image_folder), num_classes=None))
    with pytest.raises(DataError, match="must hold the folders train and val"):
        resolve(DataConfig("folder", str(image_folder / "train"), num_classes=None))


def test_fewer_images_than_a_batch_are_refused(image_folder):
    config = DataConfig("folder", str(image_folder), img_size=32, num_classes=2, workers=0)
    data = ImageDataModule(config, Recipe(epochs=2, warmup_epochs=0, batch_size=64))
    with pytest.raises(DataError, match="12 training images, fewer than a batch"):
        data.setup("fit")
