"""Speed: the figures are those of the scores and times they stand for; what is printed is what was found."""

import random
from dataclasses import asdict

import pytest
from scipy import stats

from configs.compose import compose
from esformer.errors import ESFormerError
from esformer.proxies import score
from esformer.space import SearchSpace
from pipelines.timing import speed
from pipelines.timing.speed import Input, measure, spearman


def genotypes(count, start=0):
    return [SearchSpace.for_size("S0").sample(random.Random(start + i)) for i in range(count)]


@pytest.fixture(scope="module")
def found():
    late = dict.fromkeys(speed.PROXIES, genotypes(1, start=9))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speed, "PROFILED", 1)
        return measure(genotypes(4), late, seed=2, img_size=33, draws=1, papers_size=64, sizes=(33,))


@pytest.mark.nightly
def test_scores_without_a_network_are_faster_and_the_same(found):
    assert set(found["proxies"]) == {"entropic_score", "log_synflow"} and found["genotypes"] == {"random": 4, "late": 1}
    for proxy in found["proxies"].values():
        reference, quick, search = (proxy[way] for way in ("reference", "without_network", "search"))
        assert (reference["img_size"], reference["draws"]) == (quick["img_size"], quick["draws"]) == (64, 3)
        assert (search["img_size"], search["draws"]) == (33, 1)
        assert 0 < quick["largest_difference"] < 1e-5  # 0 would be the reference against itself
        assert reference["times_reference"] == 1 < quick["times_reference"] < search["times_reference"]
        for way in (reference, quick, search):
            low, high = way["per_second_quartiles"]
            assert 0 < low <= way["per_second"] <= high < 1e5
        assert 0 < search["first_seconds"] < 60


@pytest.mark.nightly
def test_ranks_are_those_of_the_scores(found):
    for name, proxy in found["proxies"].items():
        rows = proxy["ranks"]["random"]
        assert [(row["img_size"], row["draws"], row["seed"]) for row in rows] == [
            (33, 1, 2), (64, 1, 2), (64, 3, 3),
        ]  # fmt: skip
        paper = [score(name, g, 2, 64) for g in genotypes(4)]
        small = [score(name, g, 2, 33, draws=1) for g in genotypes(4)]
        other = [score(name, g, 3, 64) for g in genotypes(4)]
        assert rows[0]["spearman"] == pytest.approx(stats.spearmanr(paper, small).statistic)
        assert rows[2]["spearman"] == pytest.approx(stats.spearmanr(paper, other).statistic)
        assert all(row["spearman"] is None for row in proxy["ranks"]["late"])  # too few


@pytest.mark.nightly
def test_the_profile_says_where_the_time_goes(found):
    for proxy in found["proxies"].values():
        assert sum(proxy["profile"].values()) == pytest.approx(1, abs=0.02)
        assert min(proxy["profile"].values()) >= 0
        for kind in ("matrix products", "depthwise convolutions", "other convolutions", "logarithms"):
            assert proxy["profile"][kind] > 0.001, kind


@pytest.mark.nightly
def test_tables_hold_all_that_was_found(found, capfd):
    speed.show({"space": "S0", "seed": 2, **found})
    printed = capfd.readouterr().out
    for text in (
        "4 random, 1 late",
        "33 px, 1 draw",
        "64 px, 3 draws, another seed",
        "differs by",
        "too few",
        "log_syn",
    ):
        assert text in printed, text
    assert printed.count("(quartiles)") == 1 == printed.count("(95 % interval)")


@pytest.mark.parametrize("draws", [None, 2])
def test_the_configuration_says_what_and_the_journal_which(monkeypatch, tmp_path, draws):
    asked, seen = {}, genotypes(3)

    def stub(genotypes, late, *args):
        asked.update(random=genotypes, late=late, args=args)
        return {}

    monkeypatch.setattr(speed, "measure", stub)
    monkeypatch.setattr(speed, "show", lambda found: None)
    monkeypatch.setattr(speed, "LATE", 2)

    class Line:
        def __init__(self, genotype, proxy="log_synflow"):
            self.genotype, self.scores = genotype.to_dict(), {proxy: 1.0}

    lines = [*map(Line, (*seen, seen[1], seen[1])), Line(seen[0], "entropic_score")]
    monkeypatch.setattr("esformer.search.journal.read", lambda path: lines)
    settings = ["seed=7", "search.img_size=96"] + ([f"search.draws={draws}"] if draws else [])
    result = speed.speed(compose("S0", overrides=settings), 4, tmp_path / "journal.jsonl")
    rng = random.Random(7)
    assert asked["random"] == [SearchSpace.for_size("S0").sample(rng) for _ in range(4)]
    assert asked["late"] == {"entropic_score": [seen[0]], "log_synflow": [seen[2], seen[1]]}
    assert asked["args"] == (7, 96, draws)
    assert result == {"space": "S0", "seed": 7}


def test_intervals_hold_the_correlation_as_often_as_they_say():
    assert spearman([1, 2, 3], [1, 2, 3]) == (None, None) == spearman([1, 2, 3, 4], [1, 1, 1, 1])
    rho, (low, high) = spearman(range(10), range(10))
    assert rho == pytest.approx(1) and 0.99 < low <= high <= 1
    rng, hits = random.Random(0), 0
    for _ in range(300):
        common = [rng.gauss(0, 1) for _ in range(50)]
        a, b = ([value + rng.gauss(0, 1) for value in common] for _ in range(2))
        low, high = spearman(a, b)[1]
        hits += low < 0.483 < high  # 6 / pi * asin(0.5 / 2)
    assert 0.92 < hits / 300 < 0.98


def test_no_genotypes_are_refused():
    with pytest.raises(ESFormerError, match="at least 1"):
        speed.speed(compose("S0"), 0)


def test_inputs_read_well():
    assert str(Input(33, 1)) == "33 px, 1 draw" and str(Input(224, 3)) == "224 px, 3 draws"
    assert asdict(Input(33, 1)) == {"img_size": 33, "draws": 1}
