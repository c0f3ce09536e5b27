"""FreeREA's search with its authors' own scores finds what its authors published."""

import runpy
from pathlib import Path
from statistics import mean

import pytest

NAS = Path(__file__).parents[2] / "shared" / "data" / "nas"
TABLES = [NAS / name for name in ("natsbench_tss_nb201.csv.gz", "natsbench_tss_proxies.csv.gz")]


@pytest.fixture(scope="module")
def example():
    if not all(table.is_file() for table in TABLES):
        pytest.skip("needs ../shared/data/nas")
    return runpy.run_path(Path(__file__).parent.parent / "docs" / "freerea.py")


@pytest.mark.nightly
def test_the_published_accuracies_are_found(example, capsys):
    found = example["main"](*map(str, TABLES), seeds=3)
    whole = "naswot + logsynflow + skipped_layers"
    accuracies = {key: mean(one.accuracy for one in several) for key, several in found.items()}
    for dataset, published in {"cifar10": 94.36, "cifar100": 73.51, "imagenet16-120": 46.34}.items():
        assert accuracies[whole, dataset] == pytest.approx(published, abs=0.15)
        assert accuracies[whole, dataset] > max(accuracies[guide, dataset] for guide in ("naswot", "logsynflow", "sed"))
    rows = capsys.readouterr().out.splitlines()
    assert rows[0].startswith("| guided by | cifar10 | cifar100")
    assert rows[-1] == "| the best there is | 94.37 | 73.51 | 47.31 |"
