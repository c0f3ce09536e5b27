"""What a search prints in the end: its find beside EfficientFormerV2, in numbers that anybody can check."""

import csv
from pathlib import Path

import pytest

from esformer import Genotype, cost, score
from esformer.proxies import get
from esformer.text import number
from pipelines import search
from pipelines.runtime.console import show

SHORT = ["--size", "S0", "--quick", "search.total=20", "search.start_length=5", "search.phase_length=5"]
SHORT += ["search.img_size=33", "seed=4", "wandb.mode=disabled"]


@pytest.fixture
def printed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("callbacks.search.draw_search", lambda *args: None)
    found = search.main([*SHORT, f"run.dir={tmp_path}"])
    text = capsys.readouterr().out
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.count("│") == 4]
    rows = {name: values for name, *values in lines}
    return Genotype.load(tmp_path / "genotype.yaml"), found, rows


def test_the_find_stands_beside_efficientformerv2(printed):
    genotype, found, rows = printed
    networks = (genotype, Genotype.shipped("efficientformerv2_s0"))
    prices = [cost(network, 32, 10) for network in networks]
    assert rows["params"] == [f"{price.params:,}" for price in prices] and found["params"] == prices[0].params
    assert rows["macs"] == [f"{price.macs:,}" for price in prices]
    for proxy in ("entropic_score", "log_synflow"):
        scores = [score(proxy, network, 4 + 2**31, get(proxy).search_img_size) for network in networks]
        assert rows[f"{proxy}, in other draws"] == [*map(number, scores)]
    kept = csv.reader((Path(found["genotype"]).parent / "compared.csv").read_text().splitlines())
    assert [["", "found", "efficientformerv2_s0"], *([name, *values] for name, values in rows.items())] == [*kept]
    as_searched = {name: values[0] for name, values in rows.items() if name.endswith(", as searched")}
    assert as_searched == {f"{proxy}, as searched": number(one) for proxy, one in found["search_score"].items()}


def test_accuracies_are_printed_in_percent(capsys):
    show({"top1": 0.75534, "ema_top1": None, "loss": 0.75534})
    said = capsys.readouterr().out
    assert "75.53 %" in said and "0.75534 " in said and "None" not in said
