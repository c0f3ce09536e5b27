"""An index of shards is believed only if it can be one of them; whoever wrote it, another is made otherwise."""

import hashlib
import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save, save_file
from written import contents, opened, write_parquet, write_tars

from esformer.data import shards
from esformer.data.sources import find_shards


def changed(at, value):
    def forge(table):
        table[at] = value
        return table

    return forge


FORGED = {
    "no such shard": changed((0, -1), 3),
    "a shard before the first": changed((0, 0), -1),
    "shards out of order": lambda table: table[:, ::-1],
    "a place beyond its file": changed((1, 5), 2**40),
    "a negative place": changed((1, 5), -512),
    "a size beyond its file": changed((2, 5), 2**62),
    "a negative size": changed((2, 5), -1),
    "a label far away": changed((3, 5), 10**12),
    "the largest label": changed((3, 5), 2**63 - 1),
    "a negative label": changed((3, 5), -1),
    "a class without images": changed(3, 1),
    "floats": lambda table: table.astype(np.float64),
    "narrow numbers": lambda table: table.astype(np.int32),
    "a row too few": lambda table: table[:3],
    "one number": lambda table: np.array(7),
    "no images": lambda table: table[:, :0],
    "another shape": lambda table: table[None],
}


@pytest.fixture(params=[(write_tars, ".tar"), (write_parquet, ".parquet")], ids=["tars", "parquet"])
def kept(request, images, tmp_path):
    """A folder of shards and the index of its training images."""
    write, ending = request.param
    root = write(tmp_path, images)
    opened(root)
    paths = find_shards(root, True, ending)
    return root, shards._places(paths)[0], paths


@pytest.mark.parametrize("forge", FORGED.values(), ids=FORGED)
def test_a_forged_index_is_made_anew(forge, kept, monkeypatch):
    root, place, paths = kept
    whole, good = contents(opened(root)), place.read_bytes()
    table = np.ascontiguousarray(forge(load_file(place)["table"]))
    files = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    digest = shards._digest(json.dumps([shards.VERSION, files]), table)  # so that nothing else gives it away
    place.write_bytes(save({"table": table}, {"digest": digest}))
    assert shards._load(place, json.dumps([shards.VERSION, files])) is not None
    assert contents(opened(root)) == whole
    assert place.read_bytes() == good


def test_a_flipped_bit_is_seen(kept):
    root, place, _ = kept
    whole, good = contents(opened(root)), place.read_bytes()
    for at in (-1, -20, len(good) // 2, 9, 3):
        damaged = bytearray(good)
        damaged[at] ^= 1
        place.write_bytes(damaged)
        assert contents(opened(root)) == whole
        assert place.read_bytes() == good


def huge(place):
    """Says that it holds a tensor of terabytes."""
    head = json.dumps({"table": {"dtype": "I64", "shape": [4, 2**38], "data_offsets": [0, 2**43]}}).encode()
    place.write_bytes(len(head).to_bytes(8, "little") + head + bytes(64))


NO_INDEX = {
    "huge": huge,
    "head without end": lambda place: place.write_bytes(b"\xff" * 100),
    "deep head": lambda place: place.write_bytes((100_000).to_bytes(8, "little") + b"[" * 100_000),
    "empty": lambda place: place.write_bytes(b""),
    "nothing of ours": lambda place: save_file({"weight": np.zeros(3)}, place),
    "no digest": lambda place: save_file({"table": np.zeros((4, 3), np.int64)}, place),
    "eighths": lambda place: place.write_bytes(
        save({"table": np.zeros(8, np.uint8)}, {"digest": hashlib.sha256(b"").hexdigest()}).replace(b"U8", b"F8")
    ),
    "a folder": lambda place: (place.unlink(), place.mkdir()),
}


@pytest.mark.parametrize("spoil", NO_INDEX.values(), ids=NO_INDEX)
def test_what_is_no_index_is_made_anew(spoil, kept):
    root, place, _ = kept
    whole = contents(opened(root))
    spoil(place)
    assert contents(opened(root)) == whole
