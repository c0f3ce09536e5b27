import copy
import json
import pickle
import random
import re
import time
from dataclasses import FrozenInstanceError, asdict, replace

import pytest
import yaml

from esformer.files import LARGEST
from esformer.genotype import ConvBlock, Genotype, GenotypeError, notation, parse, shipped_names

S0 = Genotype.shipped("efficientformerv2_s0")
S0_DIGEST = "cdbd0e02848ca023"
SUFFIXES = (".yaml", ".json")


def changed(value, *path):
    """S0 as plain containers, with one thing in it replaced, or left out where the value is `...`."""
    d = S0.to_dict()
    *way, last = path
    inner = d
    for step in way:
        inner = inner[step]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return d


def gene(value, name="kernel", stage=0, block=0):
    return changed(value, "stages", stage, block, name)


def refusal(path):
    """The message of the one error there may be: a line that names the file."""
    with pytest.raises(ValueError) as caught:
        Genotype.load(path)
    assert type(caught.value) is GenotypeError
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert len(message.splitlines()) == 1 and len(message) < len(str(path)) + 300
    return message.removeprefix(f"{path}: ")


def test_frozen_hashable_and_equal_by_value():
    twin = Genotype.from_dict(S0.to_dict())
    assert twin is not S0 and twin == S0 and len({twin, S0}) == 1
    assert Genotype.shipped("efficientformerv2_s1") != S0
    assert replace(S0, space="S0-extended") != S0
    with pytest.raises(FrozenInstanceError):
        S0.space = "S1"
    with pytest.raises(FrozenInstanceError):
        next(S0.blocks()).out = 8


def test_blocks_come_in_the_order_of_the_network():
    assert [block.out for block in S0.blocks()] == [32] * 2 + [48] * 2 + [96] * 6 + [176] * 4


def test_the_genes_of_a_block_are_its_fields():
    for block in S0.blocks():
        assert list(block.genes().items()) == list(asdict(block).items())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda g: pickle.loads(pickle.dumps(g))])
def test_copies_are_equal(copied):
    assert copied(S0) == S0 and copied(S0).digest == S0_DIGEST


def test_lists_for_tuples_are_refused_or_as_good_as_tuples():
    try:
        listed = Genotype("S0", [list(stage) for stage in S0.stages])
    except GenotypeError:
        return
    assert listed == S0 and hash(listed) == hash(S0)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", shipped_names())
def test_round_trip(tmp_path, name, suffix):
    genotype, path = Genotype.shipped(name), tmp_path / f"g{suffix}"
    genotype.save(path, comment="first line\nsecond: line")
    assert Genotype.load(path) == Genotype.load(str(path)) == genotype
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    plain = (json.loads if suffix == ".json" else yaml.safe_load)(path.read_text(encoding="utf-8"))
    assert plain == genotype.to_dict()


def test_save_replaces_and_comments_yaml(tmp_path):
    path = tmp_path / "g.yaml"
    Genotype.shipped("efficientformerv2_s2").save(path)
    S0.save(path, comment="found for 3.5 M\nseed 0")
    assert path.read_text(encoding="utf-8").startswith("# found for 3.5 M\n# seed 0\ngenotype: 1\n")
    assert Genotype.load(path) == S0


def test_the_digest_is_the_same_in_every_process(fresh_process):
    code = "from esformer.genotype import Genotype; print(Genotype.shipped('efficientformerv2_s0').digest)"
    assert S0.digest == S0_DIGEST
    assert fresh_process("-c", code, PYTHONHASHSEED="5").strip() == S0_DIGEST


def test_every_gene_counts_in_the_digest():
    blocks = [Genotype.from_dict(gene(*change)) for change in [(5,), ("convnext", "ffn"), (3, "ratio"), (24, "out")]]
    attention = [Genotype.from_dict(gene(*change, 3, 3)) for change in [(6, "heads"), (40, "head_dim"), (184, "out")]]
    assert len({g.digest for g in [S0, replace(S0, space="S0-extended"), *blocks, *attention]}) == 9


@pytest.mark.parametrize(
    ("d", "says"),
    [
        (gene(4), ["stage 1, block 1", "kernel is 4", "3, 5 or 7"]),
        (gene("swish", "ffn"), ["stage 1, block 1", "ffn is 'swish'", "ibn or convnext"]),
        (gene("bottleneck", "ffn"), ["ffn is 'bottleneck'", "ibn or convnext"]),
        (gene(33, "out"), ["stage 1, block 1", "out is 33", "16, 24, 32, 40 or 48"]),
        (gene(1000, "out", 3, 3), ["stage 4, block 4", "out is 1000", "88 to 264 in steps of 8"]),
        (gene(7, "heads", 2, 5), ["stage 3, block 6", "heads is 7", "4, 6, 8, 10 or 12"]),
        (gene(20, "head_dim", 3, 2), ["stage 4, block 3", "head_dim is 20", "16, 24, 32, 40 or 48"]),
        (gene(-4, "ratio", 1), ["stage 2, block 1", "ratio is -4", "2, 3, 4, 5 or 6"]),
        (gene(True), ["stage 1, block 1", "kernel is True"]),
        (gene(3.0), ["stage 1, block 1", "kernel is 3.0"]),
        (gene("3"), ["stage 1, block 1", "kernel is '3'"]),
        (gene(None), ["stage 1, block 1", "kernel is None"]),
        (gene([3]), ["stage 1, block 1", "kernel is [3]"]),
        (gene({"a": 3}), ["stage 1, block 1", "kernel is {'a': 3}"]),
        (gene(float("nan")), ["stage 1, block 1", "kernel is nan"]),
        (gene(float("inf"), "out"), ["stage 1, block 1", "out is inf"]),
        (gene(10**4000), ["stage 1, block 1", "kernel is an integer of 13288 bits"]),
        (gene("x" * 500, "ffn"), ["stage 1, block 1", "ffn is 'xxx"]),
        (gene(24, "out", 0, 1), ["stage 1, block 2", "out is 24", "32", "never decrease"]),
        (changed(64, "stages", 2, 5, "out"), ["stage 3, block 6", "out is 64", "96", "never decrease"]),
        (gene(1, "colour"), ["stage 1, block 1", "unknown key 'colour'", "ffn, kernel, out and ratio"]),
        (gene(..., "ratio"), ["stage 1, block 1", "lacks 'ratio'", "ffn, kernel, out and ratio"]),
        (gene(..., "head_dim", 3, 3), ["stage 4, block 4", "lacks 'head_dim'"]),
        (changed(S0.to_dict()["stages"][2][0], "stages", 2, 4), ["stage 3, block 5", "'kernel'", "heads"]),
        (changed(S0.to_dict()["stages"][2][4], "stages", 2, 0), ["stage 3, block 1", "'heads'", "kernel"]),
        (changed(7, "stages", 0, 0), ["stage 1, block 1", "is 7", "ffn, kernel, out and ratio"]),
        (changed("abcd", "stages", 3), ["stage 4", "'abcd'", "list of 4 blocks in space S0"]),
        (changed(S0.to_dict()["stages"][:3], "stages"), ["stages", "3", "4 stages in space S0"]),
        (changed(..., "stages", 0, 0), ["stage 1", "1", "2 blocks in space S0"]),
        (changed({}, "stages"), ["stages", "{}", "4 stages"]),
        (changed("S3", "space"), ["space is 'S3'", "S0, S1, S2, S0-extended"]),
        (changed("S1", "space"), ["stage 1", "3 blocks in space S1"]),
        (changed(["S0"], "space"), ["space is ['S0']", "S0, S1, S2"]),
        (changed(2, "genotype"), ["version", "2", "must be 1"]),
        (changed(True, "genotype"), ["version", "True", "must be 1"]),
        (changed(..., "space"), ["lacks 'space'", "genotype, space and stages"]),
        (changed("x", "name"), ["unknown key 'name'", "genotype, space and stages"]),
    ],
)
def test_a_wrong_gene_is_named_with_its_place_and_what_is_allowed(d, says):
    with pytest.raises(GenotypeError) as caught:
        Genotype.from_dict(d)
    assert not [part for part in says if part not in str(caught.value)], str(caught.value)
    assert len(str(caught.value)) < 300 and "\n" not in str(caught.value)


def test_the_constructor_checks_as_loading_does():
    stages = S0.stages
    for block in (ConvBlock("ibn", 4, 32, 4), ConvBlock("ibn", 3, True, 4), stages[3][3], "ibn"):
        with pytest.raises(GenotypeError, match="stage 1, block 1"):
            Genotype("S0", ((block, stages[0][1]), *stages[1:]))
    with pytest.raises(GenotypeError, match="space is"):
        Genotype("S9", stages)


BOMB = b"a: &a [x, x]\n" + b"".join(b"%c: &%c [*%c, *%c]\n" % (c, c, c - 1, c - 1) for c in b"bcdefghijklmnopqrstuvw")
BAD = {  # what stands in a file, and a part of what is said about it
    "empty.yaml": (b"", "is None"),
    "empty.json": (b"", "Expecting value"),
    "a list.yaml": (b"- 1\n- 2\n", r"is \[1, 2\]"),
    "a list.json": (b"[1, 2]", r"is \[1, 2\]"),
    "a number.yaml": (b"12", "is 12"),
    "binary.yaml": (bytes(range(256)), "not text in UTF-8"),
    "binary.json": (bytes(range(256)), "not text in UTF-8"),
    "not utf-8.yaml": ("# Größe\n".encode("latin-1"), "utf-8"),
    "control.yaml": (b"genotype: \x07", "special characters"),
    "torn.yaml": (b"genotype: [1, ", "not plain YAML"),
    "torn.json": (b'{"genotype": 1, ', "not JSON"),
    "two documents.yaml": (b"--- {}\n--- {}\n", "another document"),
    "a key twice.yaml": (b"genotype: 1\nspace: S0\nspace: S1\n", "the key 'space' twice"),
    "a key twice.json": (b'{"genotype": 1, "space": "S0", "space": "S1"}', "the key 'space' twice"),
    "a key twice inside.json": (b'{"stages": [[{"out": 8, "out": 16}]]}', "the key 'out' twice"),
    "an unhashable key.yaml": (b"? [1, 2]\n: 3\n", "keys are words"),
    "an alias.yaml": (b"genotype: &a 1\nspace: *a\n", "aliases"),
    "an alias of itself.yaml": (b"&a [*a]", "aliases"),
    "a bomb.yaml": (BOMB, "aliases"),
    "a merge key.yaml": (b"<<: {genotype: 1}\nspace: S0\n", "'<<'"),
    "nan.json": (b'{"genotype": NaN, "space": "S0", "stages": []}', "is nan"),
    "infinity.json": (b'{"genotype": -Infinity, "space": "S0", "stages": []}', "is -inf"),
    "huge.yaml": (b"genotype: 1" + b"0" * 5000, "digits"),
    "huge.json": (b'{"genotype": 1' + b"0" * 5000 + b"}", "digits"),
    "huge and hexadecimal.yaml": (b"genotype: 0x1" + b"f" * 5000 + b"\nspace: S0\nstages: []", "bits"),
    "huge inside a list.yaml": (b"genotype: [0x1" + b"f" * 5000 + b"]\nspace: S0\nstages: []", "version"),
    "no such date.yaml": (b"genotype: 2001-99-99", "lacks 'space'"),
    "a tag that computes.yaml": (b"!!python/object/apply:os.system ['touch executed']", "tag"),
    "a tag with a newline.yaml": (b"!a%0Ab c", "tag"),
    "a tag and no date.yaml": (b"!!timestamp soon", "tag|timestamp"),
    "a tag and no number.yaml": (b'genotype: !!int ""', "tag|int"),
    "a tag and no float.yaml": (b'genotype: !!float ""', "tag|float"),
    "a tag and no bool.yaml": (b"genotype: !!bool maybe", "tag|bool"),
    "too large.yaml": (b"#" * (LARGEST + 1), "250,000 bytes"),
    "deep.yaml": (b"[" * 5000 + b"]" * 5000, "too deeply"),
    "deep.json": (b"[" * 100_000 + b"]" * 100_000, "too deeply"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_broken_file_is_refused_in_one_line(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    content, says = BAD[name]
    path.write_bytes(content)
    message = refusal(path)
    assert re.search(says, message), message
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(("name", "says"), [("absent.yaml", "No such file"), ("folder.yaml", "directory")])
def test_a_path_without_a_file_is_refused(tmp_path, name, says):
    (tmp_path / "folder.yaml").mkdir()
    assert says in refusal(tmp_path / name)


@pytest.mark.parametrize(("suffix", "depths"), [(".yaml", range(100, 350, 25)), (".json", range(900, 1010, 2))])
def test_nesting_of_any_depth_is_refused(tmp_path, suffix, depths):
    for depth in depths:  # just below the parser's own limit, something later may run into it
        path = tmp_path / f"g{suffix}"
        path.write_text('{"genotype": ' + "[" * depth + "]" * depth + "}")
        refusal(path)


def test_a_file_of_many_keys_is_refused_in_no_time(tmp_path):
    path = tmp_path / "many.json"
    path.write_text(json.dumps({f"{i:05d}": 1 for i in range(20_000)}))
    assert path.stat().st_size < LARGEST
    start = time.perf_counter()
    assert "unknown key '00000'" in refusal(path)
    assert time.perf_counter() - start < 1.5


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_changed_at_random_is_a_genotype_or_refused(tmp_path, suffix):
    path, rng = tmp_path / f"g{suffix}", random.Random(0)
    S0.save(path)
    whole, refused = path.read_bytes(), 0
    for _ in range(200):
        spoiled = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            spoiled[rng.randrange(len(spoiled))] = rng.randrange(32, 127)
        path.write_bytes(spoiled)
        try:
            assert Genotype.load(path).space in ("S0", "S1", "S2")
        except GenotypeError:
            refused += 1
    assert refused > 100


def test_what_is_shipped_is_listed_when_a_name_is_unknown():
    with pytest.raises(GenotypeError, match=r"no genotype 'resnet' is shipped.*efficientformerv2_s0"):
        Genotype.shipped("resnet")


@pytest.mark.parametrize("size", ["S0", "S1", "S2"])
@pytest.mark.parametrize("extended", [False, True])
def test_the_notation_is_the_genotype(draw, size, extended):
    genotype = draw(size, 0, extended)
    assert parse(notation(genotype)) == genotype
    assert "\n" not in notation(genotype)


@pytest.mark.parametrize(
    "text",
    ["", "S0", "S9: ibn.3.32.4", "S0: ibn.3.32.4", notation(S0)[:-1], notation(S0).replace("3", "x", 1)],
)
def test_what_is_no_genotype_is_refused(text):
    with pytest.raises(GenotypeError, match="must be a genotype"):
        parse(text)
