"""A file in which a bit has changed is refused, or says exactly what it said before; and a small one stays small."""

import io
import json
import random
import zipfile

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file as save_contiguous

import esformer
from esformer.checkpoint import CheckpointError, open_checkpoint, read


def flipped(content, bit):
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def save_file(weights, path, metadata=None):
    save_contiguous({name: value.contiguous() for name, value in weights.items()}, path, metadata)


def places(content, parts, count):
    """Bits of a file, drawn from each of its parts alike: a header is small, and a bit of it easily missed."""
    draw = random.Random(0)
    return [8 * draw.randrange(*part) + draw.randrange(8) for part in parts for _ in range(count)]


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other) and one.dtype == other.dtype
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def told(found):
    return found.describe() | {"raw": found.raw, "averaged": found.averaged}


@pytest.mark.nightly
def test_bits_of_a_checkpoint(trained, content, tmp_path):
    whole, path = trained.read_bytes(), tmp_path / "w.ckpt"
    with zipfile.ZipFile(trained) as archive:
        directory, pickled = archive.start_dir, archive.infolist()[0].file_size
    refused = 0
    for bit in places(whole, [(0, pickled), (pickled, directory), (directory, len(whole))], 12):
        path.write_bytes(flipped(whole, bit))
        try:
            found = read(path)
        except CheckpointError as error:
            assert "w.ckpt is damaged" in str(error)
            refused += 1
        else:
            assert same(found, content), bit
    assert refused > 20


def test_bits_of_safetensors(known, tmp_path):
    known.save(tmp_path / "whole.safetensors")
    whole, path = (tmp_path / "whole.safetensors").read_bytes(), tmp_path / "w.safetensors"
    header = 8 + int.from_bytes(whole[:8], "little")
    about = whole.index(b"provenance")
    refused = 0
    for bit in places(whole, [(0, 8), (8, about + 200), (about, header), (header, len(whole))], 12):
        path.write_bytes(flipped(whole, bit))
        try:
            found = open_checkpoint(path)
        except CheckpointError:
            refused += 1
        else:
            assert same(told(found), told(open_checkpoint(tmp_path / "whole.safetensors"))), bit
    assert refused > 30


def test_a_forged_word_about_good_weights(known, tmp_path):
    known.save(tmp_path / "w.safetensors")
    with safe_open(tmp_path / "w.safetensors", "pt") as file:
        metadata = file.metadata()
    about = json.loads(metadata["esformer"])
    about["metrics"]["val/ema_top1"] = 0.99
    save_file(known.averaged, tmp_path / "f.safetensors", metadata | {"esformer": json.dumps(about)})
    with pytest.raises(CheckpointError, match="is damaged: its weights or what it says of them"):
        open_checkpoint(tmp_path / "f.safetensors")
    del metadata["sha256"]  # as earlier versions wrote it
    save_file(known.averaged, tmp_path / "f.safetensors", metadata)
    assert same(told(open_checkpoint(tmp_path / "f.safetensors")), told(open_checkpoint(tmp_path / "w.safetensors")))


def test_timms_files_have_no_digest(known, tmp_path):
    save_file(known.averaged, tmp_path / "w.safetensors")
    assert same(open_checkpoint(tmp_path / "w.safetensors").raw, known.averaged)


def zipped(write, **settings):
    """A zip file of zeros that PyTorch would open."""
    whole = io.BytesIO()
    torch.save({"a": torch.zeros(1_000_000)}, whole)
    made = io.BytesIO()
    with zipfile.ZipFile(whole) as before, zipfile.ZipFile(made, "w", **settings) as after:
        write(before, after)
    return made.getvalue()


def test_a_bomb_is_not_unpacked(tmp_path):
    def copy(before, after):
        for name in before.namelist():
            after.writestr(name, before.read(name))

    (tmp_path / "w.ckpt").write_bytes(zipped(copy, compression=zipfile.ZIP_DEFLATED))
    assert (tmp_path / "w.ckpt").stat().st_size < 10_000
    with pytest.raises(CheckpointError, match="PyTorch compresses nothing"):
        open_checkpoint(tmp_path / "w.ckpt")

    def share(before, after):
        copy(before, after)
        shared = after.getinfo("archive/data/0")
        after.filelist += [shared] * 50  # as many storages of the same bytes

    (tmp_path / "w.ckpt").write_bytes(zipped(share))
    with pytest.raises(CheckpointError, match="claims to hold more than its size|is damaged"):
        open_checkpoint(tmp_path / "w.ckpt")


@pytest.mark.parametrize(
    ("name", "change", "match"),
    [
        ("norm.weight", lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8), "of quantised numbers"),
        ("norm.weight", lambda w: w.to(torch.complex64), "it must be of real floating-point numbers"),
        ("norm.weight", lambda w: w.int(), "it must be of real floating-point numbers"),
        ("norm.weight", lambda w: w.to("meta"), "is a tensor without numbers"),
        ("norm.num_batches_tracked", lambda w: w.float(), "it must be of torch.int64"),
        ("head.weight", lambda w: w.to_sparse(), "of another layout"),
        ("head.weight", lambda w: [1.0], "is a list and no tensor"),
        ("head.weight", lambda w: torch.zeros(88).expand(10**6, 88), "claims to have 88,000,000 numbers"),
    ],
)
def test_tensors_that_can_be_no_weights(name, change, match, known, content, tmp_path):
    weights = known.raw | {name: change(known.raw[name])}
    for held in (weights, content | {"state_dict_ema": weights}):
        torch.save(held, tmp_path / "w.ckpt")
        for opened in (open_checkpoint, esformer.load):
            with pytest.raises(CheckpointError, match=match):
                opened(tmp_path / "w.ckpt")


def test_tensors_that_share_their_numbers(known, tmp_path):
    big = torch.zeros(10, 10_000)
    weights = known.raw | {"head.weight": big} | {f"stages.0.more{i}": big for i in range(50)}
    torch.save(weights, tmp_path / "w.ckpt")
    with pytest.raises(CheckpointError, match="they share memory"):
        open_checkpoint(tmp_path / "w.ckpt")


@pytest.mark.parametrize(
    "size",
    [float("inf"), float("nan"), -64, 0, 64.5, True, 10**400, 10**5000, [64, "64"], 4096],
    ids=lambda size: str(size)[:5] if not isinstance(size, int) or size < 10**9 else "huge",
)
def test_sizes_that_no_image_has(size, known, content, tmp_path):
    match = "images have|is not as this or an earlier version|positions, which are not those|is damaged"
    torch.save(content | {"hyper_parameters": content["hyper_parameters"] | {"img_size": size}}, tmp_path / "w.ckpt")
    with pytest.raises(CheckpointError, match=match):
        open_checkpoint(tmp_path / "w.ckpt")
    (tmp_path / "folder").mkdir()
    save_file(known.averaged, tmp_path / "folder" / "model.safetensors")
    if size != 10**5000:  # which Python does not write
        (tmp_path / "folder" / "config.json").write_text(json.dumps({"model_args": {"img_size": size}}))
        if size != 0:  # which timm's config.json may have for nothing
            with pytest.raises(CheckpointError, match=match):
                open_checkpoint(tmp_path / "folder")


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 5000 + "1" + "}" * 5000, '{"format": ' + "9" * 5000 + "}", '{"format": 3}', "é\0"]
)
def test_odd_json(text, known, tmp_path):
    save_file(known.averaged, tmp_path / "w.safetensors", {"esformer": text})
    with pytest.raises(CheckpointError, match="w.safetensors") as caught:
        open_checkpoint(tmp_path / "w.safetensors")
    assert len(str(caught.value)) < 600
    (tmp_path / "folder").mkdir()
    save_file(known.averaged, tmp_path / "folder" / "model.safetensors")
    (tmp_path / "folder" / "config.json").write_text(text)
    if text != '{"format": 3}':
        with pytest.raises(CheckpointError, match="folder"):
            open_checkpoint(tmp_path / "folder")


@pytest.mark.parametrize(
    "said",
    [
        {"std": [0, 1, 1]},
        {"mean": [float("nan")] * 3},
        {"crop_pct": -1},
        {"interpolation": "psychic"},
        {"std": [1.0]},
        {"name": ["a"]},
    ],
)
def test_preparations_that_cannot_be(said, known, content, tmp_path):
    torch.save(content | {"data": content["data"] | said}, tmp_path / "w.ckpt")
    (tmp_path / "folder").mkdir()
    save_file(known.averaged, tmp_path / "folder" / "model.safetensors")
    (tmp_path / "folder" / "config.json").write_text(json.dumps({"pretrained_cfg": content["data"] | said}))
    for path in (tmp_path / "w.ckpt", *([tmp_path / "folder"] if "name" not in said else [])):
        with pytest.raises(CheckpointError, match=f"says what cannot be of its weights: data.{next(iter(said))} is"):
            esformer.load(path)


def test_a_size_once_trained_on_that_is_none(content, tmp_path):
    provenance = content["hyper_parameters"]["provenance"] | {"trained_img_size": "large"}
    settings = content["hyper_parameters"] | {"provenance": provenance}
    torch.save(content | {"hyper_parameters": settings}, tmp_path / "w.ckpt")
    with pytest.raises(CheckpointError, match="w.ckpt"):
        open_checkpoint(tmp_path / "w.ckpt")
