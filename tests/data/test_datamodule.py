"""The images: what they are, in which order they come, and that none is counted twice."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from timm.layers import DropPath
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader

from esformer.data.base import DataError
from esformer.data.datamodule import (
    IGNORE,
    DistributedEvalSampler,
    ImageDataModule,
    SampleIndex,
    collate,
    device_batch_size,
)
from esformer.data.datasets import DataConfig, resolve
from esformer.data.images import build
from esformer.data.mixup import GROUP, GroupMixup, ImageErasing
from esformer.recipe import Recipe
from esformer.training.drop_path import DeterministicDropPath


def digits(workers=0, **recipe):
    config = DataConfig("digits", img_size=32, num_classes=10, workers=workers)
    return ImageDataModule(config, Recipe(**dict(epochs=2, warmup_epochs=0, batch_size=64) | recipe))


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


def on_device(data, batch):
    """What Lightning does with a training batch."""
    return data.on_after_batch_transfer(data.on_before_batch_transfer(batch, 0), 0)


def test_batches_are_what_a_network_takes():
    data = digits(mixup=0, cutmix=0)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch.images.shape == (64, 32, 32, 3)
    assert batch.images.dtype == torch.uint8
    assert batch.targets.dtype == torch.int64
    images = on_device(data, batch).images
    mean, std = (torch.tensor(v) for v in (data.config.mean, data.config.std))
    torch.testing.assert_close(images.permute(0, 2, 3, 1), (batch.images / 255 - mean) / std)
    assert images.is_contiguous(memory_format=torch.channels_last)  # as the network wants them
    assert len(data.train_dataloader()) == data.steps_per_epoch == 1437 // 64


def test_mixup_gives_soft_targets_and_validation_none():
    data = digits()
    data.setup("fit")
    batch = on_device(data, next(iter(data.train_dataloader())))
    assert batch.targets.shape == (64, 10)
    torch.testing.assert_close(batch.targets.sum(1), torch.ones(64))
    data.trainer = SimpleNamespace(training=False)
    batch = next(iter(DataLoader(data.val_set, batch_sampler=DistributedEvalSampler(360, 8, 0, 1), collate_fn=collate)))
    assert torch.equal(on_device(data, batch).targets, batch.targets)


def epoch_of(data, epoch, rank=0, world=1, accumulate=1, workers=0, batches=3, prepare=lambda batch: batch):
    sampler = data.sampler(rank, world, accumulate)
    sampler.set_epoch(epoch)
    loader = DataLoader(data.train_set, batch_sampler=sampler, num_workers=workers, collate_fn=collate)
    return [prepare(batch) for batch, _ in zip(loader, range(batches * accumulate), strict=False)]


def test_augmentation_depends_on_epoch_and_image_alone():
    data = digits(auto_augment="rand-m9-n1")
    data.setup("fit")
    torch.manual_seed(1)
    first = epoch_of(data, 4)
    torch.manual_seed(2)
    for one, other in zip(first, epoch_of(data, 4, workers=2), strict=True):
        assert torch.equal(one.images, other.images)
        assert np.array_equal(one.places, other.places)
    again = epoch_of(data, 5)
    assert not np.array_equal(first[0].places[:, 2], again[0].places[:, 2])
    images = {
        int(place[2]): image
        for batch in epoch_of(data, 5, batches=22)
        for place, image in zip(batch.places, batch.images, strict=True)
    }
    number = int(first[0].places[0, 2])
    assert not torch.equal(first[0].images[0], images[number])


@pytest.mark.parametrize(("world", "accumulate"), [(2, 1), (1, 4), (2, 2), (8, 1)])
def test_steps_are_the_same_on_any_number_of_devices(world, accumulate):
    """The same images, augmented, erased and mixed alike, whoever takes them."""
    settings = dict(random_erasing=0.5, mixup_prob=0.8, auto_augment="rand-m7-n1", batch_size=192)
    data = digits(**settings)
    data.setup("fit")

    def by_position(batches):
        return {
            int(position): (number, image, target)
            for batch in batches
            for (_, position, number), image, target in zip(batch.places, batch.images, batch.targets, strict=True)
        }

    alone = by_position(epoch_of(data, 1, prepare=lambda batch: on_device(data, batch)))
    together = {}
    for rank in range(world):
        share = epoch_of(data, 1, rank, world, accumulate, prepare=lambda batch: on_device(data, batch))
        together |= by_position(share)
    assert together.keys() == alone.keys() == set(range(3 * 192))
    for position, (number, image, target) in alone.items():
        assert number == together[position][0]
        assert torch.equal(image, together[position][1])
        assert torch.equal(target, together[position][2])


def test_mixup_is_timms_on_neighbours():
    mixup = GroupMixup(Recipe(), 10, seed=3)
    images, targets = torch.randn(GROUP + 64, 3, 8, 8), torch.arange(GROUP + 64) % 10
    position = 5 * GROUP - 64
    order = mixup.order(position, len(images))
    assert sorted(order) == list(range(len(images)))
    mixed = images[order].clone()
    shares = mixup(mixed, targets[order], epoch=2, position=position)
    for start, stop, group in ((0, 64, 4), (64, GROUP + 64, 5)):
        np.random.seed(np.random.SeedSequence((3, 2, group)).generate_state(4))  # noqa: NPY002 (timm's)
        want, want_shares = mixup.mixup(images[order][start:stop].clone(), targets[order][start:stop])
        assert torch.equal(mixed[start:stop], want)
        assert torch.equal(shares[start:stop], want_shares)
    pairs = {frozenset((order[i], order[63 - i])) for i in range(32)}
    assert pairs == {frozenset((i, i + 1)) for i in range(0, 64, 2)}


def test_the_sampler_orders_a_batch_as_mixup_wants_it():
    data = digits(batch_size=192)
    data.setup("fit")
    for number, places in enumerate(data.sampler(rank=1, world_size=2, accumulate=1)):
        first = (2 * number + 1) * 96
        assert places[0].position == first
        assert [place.position - first for place in places] == data.mixup.order(first, 96)
    data.mixup = None
    assert [place.position for place in next(iter(data.sampler(0, 1, 1)))] == list(range(192))


class Waits(TorchDispatchMode):
    """Notes the operators that make the host wait for a GPU; copies from pinned memory do not."""

    SYNCHRONISE = ("_local_scalar_dense", "nonzero", "equal", "masked_select", "unique", "is_nonzero")

    def __init__(self):
        super().__init__()
        self.found, self.operators, self._pinned = [], 0, set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = function._schema.name.partition("::")[2]
        out = function(*args, **kwargs)
        self.operators += 1
        if kwargs.get("pin_memory"):
            self._pinned.add(out.untyped_storage()._cdata)
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        places = {tensor.device.type for tensor in (*given, *made)}
        source = (args[1] if name == "copy_" else args[0]) if args else None
        if isinstance(source, torch.Tensor) and source.untyped_storage()._cdata in self._pinned:
            asynchronous = kwargs.get("non_blocking") or (name == "copy_" and args[2:3] == (True,))
        else:
            asynchronous = False
        if name in self.SYNCHRONISE or (places == {"cpu", "cuda"} and not asynchronous):
            self.found.append(name)
        return out


@pytest.mark.parametrize("mixup", [0.8, 0.0])
def test_nothing_between_the_loader_and_the_network_waits_for_the_gpu(mixup, monkeypatch):
    """On fake tensors of a GPU: batch by batch, of several groups that share a draw."""
    monkeypatch.setattr(torch.cuda, "default_generators", (torch.Generator(),))
    data = digits(mixup=mixup, cutmix=mixup, batch_size=192, random_erasing=0.1)
    data.setup("fit")
    drops = DeterministicDropPath(nn.Sequential(DropPath(0.1), DropPath(0.2)), seed=0)
    batches = [batch for batch, _ in zip(data.train_dataloader(), range(2), strict=False)]
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        for number, host in enumerate(batches):
            images, targets = (fake.from_tensor(values).to("cuda") for values in (host.images, host.targets))
            with Waits() as waits:
                batch = on_device(data, host._replace(images=images, targets=targets))
                drops.draw(batch.places, batch.images.device)
            assert waits.found == (["_to_copy"] if number == 0 else [])  # once, mean and standard deviation
            assert waits.operators > 20
            assert (batch.images.shape, batch.images.dtype) == ((192, 3, 32, 32), torch.float32)
            assert batch.images.is_contiguous(memory_format=torch.channels_last)
            scales = [path.scale for path in drops.paths]
            assert {t.device for t in (batch.images, batch.targets, *scales)} == {torch.device("cuda", 0)}
            assert scales[0].shape == (192, 1, 1, 1)
    drops.draw(batches[0].places, torch.device("cpu"))
    assert set(drops.paths[0].scale.flatten().tolist()) == {0.0, np.float32(1 / 0.9).item()}


@pytest.mark.parametrize(("device", "pinned"), [("cuda:1", True), ("cpu", False)])
def test_only_batches_on_their_way_to_a_gpu_are_pinned(device, pinned, monkeypatch):
    """Pinning asks for a context on a GPU, which a training on the CPU beside one need not have."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    data = digits()
    data.setup("fit")
    strategy = SimpleNamespace(root_device=torch.device(device))
    data.trainer = SimpleNamespace(world_size=1, global_rank=0, strategy=strategy)
    assert data.val_dataloader().pin_memory == pinned


def test_erasing_leaves_and_erases_the_share_it_should():
    images = torch.full((400, 3, 16, 16), 7.0)
    ImageErasing(0.25, seed=0)(images, epoch=0, numbers=list(range(400)))
    erased = [(image != 7).any().item() for image in images]
    assert sum(erased) == pytest.approx(100, abs=25)
    noise = images[erased][images[erased] != 7]
    assert noise.mean().abs() < 0.05
    assert noise.std() == pytest.approx(1, abs=0.05)


def test_a_resumed_epoch_goes_on_where_it_was():
    data = digits()

    def progress(epoch, batch):
        return SimpleNamespace(
            epoch_progress=SimpleNamespace(current=SimpleNamespace(processed=epoch)),
            epoch_loop=SimpleNamespace(
                batch_progress=SimpleNamespace(current=SimpleNamespace(completed=batch)),
            ),
        )

    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    data.trainer = SimpleNamespace(world_size=1, global_rank=0, fit_loop=progress(3, 5), strategy=strategy)
    data.setup("fit")
    sampler = data.train_dataloader().batch_sampler
    whole = data.sampler(0, 1, 1)
    for epoch, start in ((3, 5), (4, 0)):
        sampler.set_epoch(epoch)
        whole.set_epoch(epoch)
        for _ in range(2):  # a loader with workers asks twice
            assert list(sampler) == list(whole)[start:]
        assert len(sampler) == 22
    data.trainer.fit_loop = progress(4, 22)
    assert list(data.train_dataloader().batch_sampler) == list(whole)


def test_loading_leaves_the_random_state_alone():
    data = digits(auto_augment="rand-m9-n1")
    data.setup("fit")
    torch.manual_seed(3)
    before = torch.get_rng_state()
    data.train_set[SampleIndex(0, 0, 0)]
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("length", "world", "size"), [(360, 1, 64), (361, 2, 8), (7, 3, 2), (2, 4, 8)])
def test_no_validation_image_is_counted_twice(length, world, size):
    samplers = [DistributedEvalSampler(length, size, rank, world) for rank in range(world)]
    numbers = sorted(place.number for sampler in samplers for batch in sampler for place in batch)
    assert [number for number in numbers if number < length] == list(range(length))
    assert len({tuple(map(len, sampler)) for sampler in samplers}) == 1  # nobody waits for somebody
    assert all(len(sampler) == len(list(sampler)) for sampler in samplers)


def test_what_lies_beyond_the_end_is_not_counted():
    data = digits()
    data.setup("fit")
    assert data.val_set[SampleIndex(0, 359, 359)].target != IGNORE
    assert data.val_set[SampleIndex(0, 360, 360)].target == IGNORE


@pytest.fixture
def with_corrupt(image_folder):
    (image_folder / "train" / "cat" / "2.png").write_text("no image")
    (image_folder / "train" / "cat" / "3.png").write_text("no image")
    (image_folder / "val" / "dog" / "1.png").write_bytes(b"")
    return image_folder


def of_folder(folder, **settings):
    config = DataConfig("folder", str(folder), img_size=32, num_classes=None, workers=0, **settings)
    data = ImageDataModule(resolve(config), Recipe(epochs=2, warmup_epochs=0, batch_size=6))
    data.setup("fit")
    return data


def test_corrupt_images_are_replaced_and_named(with_corrupt, caplog):
    data = of_folder(with_corrupt, max_corrupt=3)
    assert [item.place.number for item in (data.train_set[SampleIndex(0, 0, n)] for n in range(6))] == [
        0,
        1,
        4,
        4,
        4,
        5,
    ]
    image = data.train_set[SampleIndex(0, 5, 4)].image
    assert np.array_equal(data.train_set[SampleIndex(0, 0, 2)].image, image)  # as it would have been in its own place
    item = data.val_set[SampleIndex(0, 4, 4)]
    assert (item.target, item.image.any()) == (IGNORE, False)
    with caplog.at_level("WARNING", "esformer"):
        for _ in range(2):  # a second look finds the same ones
            for numbers in (range(6), range(6, 12)):
                data.on_before_batch_transfer(collate([data.train_set[SampleIndex(0, 0, n)] for n in numbers]), 0)
    said = [record.getMessage() for record in caplog.records]
    assert [text.rpartition("; ")[2] for text in said] == [f"skipped, as {n} of at most 3" for n in (1, 2)]
    assert "train/cat/2.png is not an image that can be read" in said[0]
    data.on_before_batch_transfer(collate([item]), 0)
    state = data.state_dict()
    again = of_folder(with_corrupt, max_corrupt=2)
    again.load_state_dict(state)
    assert len(again.corrupt) == 3


def test_too_many_corrupt_images_end_it(with_corrupt):
    data = of_folder(with_corrupt, max_corrupt=1)
    with pytest.raises(DataError, match=r"cat/3\.png is not an image .*more than data\.max_corrupt=1 images"):
        data.on_before_batch_transfer(collate([data.train_set[SampleIndex(0, 0, n)] for n in range(6)]), 0)
    for label in ("cat", "dog"):
        for path in (with_corrupt / "train" / label).iterdir():
            path.write_text("no image")
    with pytest.raises(DataError, match="nor can the 9 images after it"):
        data.train_set[SampleIndex(0, 0, 0)]


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
    with pytest.raises(DataError, match="must be one of imagenet, folder, cifar10, digits, synthetic"):
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
