"""A table of latencies: which layers it draws, its file, and what it says of networks that are not in it."""

import itertools
import random
from dataclasses import replace

import pytest
from latencies import filled, network_ms

from esformer.choices import SIZES, choices_of
from esformer.errors import ESFormerError
from esformer.genotype import Genotype, GenotypeError, parse_block
from esformer.model.latency_fit import LatencyModel
from esformer.model.latency_table import LatencyTable, LatencyTableError
from esformer.model.layers import PARTS, drawn_layers, drawn_networks, layers
from esformer.space import SearchSpace

S0 = Genotype.shipped("efficientformerv2_s0")


@pytest.fixture(scope="module")
def table():
    return filled()


def test_the_layers_of_a_network_are_its_parts_in_order():
    found = layers(S0)
    assert [layer.part for layer in found if layer.block is None] == [
        "stem",
        "downsampling",
        "downsampling",
        "attention downsampling",
        "classifier",
    ]
    assert [layer.block for layer in found if layer.block] == list(S0.blocks())
    assert [layer.part for layer in found].count("strided block") == 2
    assert [layer.pixels for layer in found if layer.block is None] == [224, 56, 28, 14, 7]
    assert all(b.chs == a.out for a, b in itertools.pairwise(found))
    assert layers(S0, 33, 10)[-1].pixels == 2 and layers(S0, 33, 10)[-1].out == 10


@pytest.mark.parametrize(("space", "img_size"), [*((size, 224) for size in SIZES), ("S0-extended", 64), ("S0", 32)])
def test_what_is_drawn_tells_of_every_network(space, img_size):
    table = filled(space, img_size, 10, networks=3)
    assert table.rows == filled(space, img_size, 10, networks=3).rows and 100 < len(table.rows) < 300
    model, searched, rng = LatencyModel.of(table), SearchSpace(choices_of(space)), random.Random(1)
    for genotype in [searched.sample(rng) for _ in range(40)]:
        assert model(genotype) == pytest.approx(network_ms(genotype, img_size, 10), rel=0.03)
    assert {row.part for row in table.rows} == {*PARTS, "reference", "calibration", "held-out"}


def test_layers_repeat_only_where_they_keep_the_width():
    drawn = drawn_layers(choices_of("S0"), 224, 1000)
    assert {times for _, times in drawn} == {1, 3}
    assert all(layer.chs == layer.out and layer.block for layer, times in drawn if times > 1)
    networks = [drawn_networks(SearchSpace.for_size("S0"), 8, purpose) for purpose in ("calibration", "held-out")]
    assert len({genotype for both in networks for genotype in both}) == 16


def test_its_error_is_that_of_networks_it_knows_nothing_of(table):
    model = LatencyModel.of(table)
    error = model.error(table)
    assert error.networks == 6 and error.mean < 0.02 and error.spearman > 0.9
    slower = LatencyTable(**vars(table))
    slower.rows = [replace(row, ms=row.ms * 1.1) if row.part == "held-out" else row for row in table.rows]
    assert LatencyModel.of(slower).whole == model.whole
    assert model.error(slower).mean == pytest.approx(1 - (1 + error.mean) / 1.1, abs=0.02)
    none = LatencyTable(**vars(table) | {"rows": [row for row in table.rows if row.part != "held-out"]})
    assert LatencyModel.of(none).error(none) is None
    assert "of 6 held-out networks" in str(error)


def test_without_whole_networks_it_is_the_sum_of_the_layers(table):
    alone = LatencyTable(**vars(table) | {"rows": [row for row in table.rows if row.layer]})
    model = LatencyModel.of(alone)
    assert model.whole == (1.0, 0.0, 0.0)
    assert model(S0) == pytest.approx(sum(map(model.layer, layers(S0))))
    assert model(S0, num_classes=10) < model(S0)
    assert LatencyModel(**model.to_dict())(S0) == model(S0)


def test_its_file_says_all_and_is_digested_by_what_was_measured(table, tmp_path):
    table.write(tmp_path / "t.csv")
    again = LatencyTable.read(tmp_path / "t.csv")
    assert again == table and again.digest == table.digest
    text = (tmp_path / "t.csv").read_text()
    assert text.startswith("# latency table: 1\n# space: S0\n# img_size: 224\n# num_classes: 1000\n# runtime: onnx")
    (tmp_path / "t.csv").write_text(text.replace("# device: imaginary", "# device: a phone") + "\n")
    assert LatencyTable.read(tmp_path / "t.csv").digest == table.digest
    again.fill(3, 77.0)
    assert again.digest != table.digest
    assert table.name(0) == "000-reference" and len({table.name(n) for n in range(len(table.rows))}) == len(table.rows)


def test_a_spreadsheet_may_have_saved_it(table, tmp_path):
    table.write(tmp_path / "t.csv")
    lines = [line + "," * 7 * line.startswith("#") for line in (tmp_path / "t.csv").read_text().splitlines()]
    (tmp_path / "t.csv").write_bytes("\r\n".join(["\ufeff" + lines[0], *lines[1:], ""]).encode())
    assert LatencyTable.read(tmp_path / "t.csv") == table


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("# latency table: 1", "# latency table: 2", "is not a latency table of this version"),
        ("# space: S0", "# space: S7", "its head must say space, img_size and num_classes: there is no search space"),
        ("# img_size: 224", "# img_size: big", "its head must say space, img_size and num_classes: invalid literal"),
        ("# img_size: 224\n", "", "its head must say space, img_size and num_classes: 'img_size'"),
        ("file,part", "file,kind", "below its head must stand the columns file,part,genes"),
        (",stem,", ",root,", "line 10 is not a row of a latency table: there is no part 'root'"),
        ("stem,,3,16", "stem,,3,-16", "line 10 is not a row of a latency table: out is '-16'; it must be a whole"),
        ("ibn.3.", "ibn.4.", "is not a row of a latency table: .*kernel is 4; .* 3, 5 or 7"),
        (",224,1,0.", ",224,1,-0.", "ms is -0.*; it must be above 0 and finite"),
        (",stem,,3,16,224,1,", ",stem,,3,16,224,2,", "it stands 2 times in a row, which it cannot"),
        (",stem,,3,16,224,1,", ",stem,,", "line 10 is not a row of a latency table: "),
    ],
)
def test_a_file_that_is_no_table_is_refused_in_a_sentence(table, tmp_path, old, new, message):
    path = tmp_path / "t.csv"
    table.write(path)
    text = path.read_text()
    assert old in text
    head, _, rows = text.partition("\n000-")
    path.write_text(text.replace(old, new, 1) if old in head else f"{head}\n000-{rows.replace(old, new, 1)}")
    with pytest.raises(LatencyTableError, match=message) as caught:
        LatencyTable.read(path)
    assert "\n" not in str(caught.value) and str(caught.value).startswith(str(path))


def test_other_files_are_refused_too(tmp_path):
    with pytest.raises(LatencyTableError, match="cannot be read: No such file"):
        LatencyTable.read(tmp_path / "none.csv")
    (tmp_path / "bytes").write_bytes(bytes(range(256)))
    with pytest.raises(LatencyTableError, match="is not text in UTF-8"):
        LatencyTable.read(tmp_path / "bytes")
    (tmp_path / "empty").write_text("")
    with pytest.raises(LatencyTableError, match="is not a latency table"):
        LatencyTable.read(tmp_path / "empty")


def test_a_table_that_is_not_filled_or_of_another_space_predicts_nothing(table, draw):
    empty = LatencyTable.drawn("S0", 224, 1000, 2, {})
    with pytest.raises(LatencyTableError, match=f"{len(empty.missing) - 19} of the .* layers .* have no ms yet"):
        LatencyModel.of(empty)
    with pytest.raises(LatencyTableError, match="no layer that tells of"):
        LatencyModel.of(table)(draw(extended=True))
    with pytest.raises(ESFormerError, match="there is no search space"):
        LatencyTable.drawn("S9", 224, 1000, 2, {})


def test_a_block_is_parsed_as_it_is_written():
    assert [parse_block(text) for text in ("ibn.3.32.4", "ibn.8.96.4.32")] == [S0.stages[0][0], S0.stages[2][4]]
    for wrong in ("", "ibn", "ibn.3.32.x", "ibn.3.32.4.5.6", "ibn.3.32.9"):
        with pytest.raises(GenotypeError):
            parse_block(wrong)
