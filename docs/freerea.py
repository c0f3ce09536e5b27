"""FreeREA's search (Cavagnero et al., WACV 2023) on NATS-Bench, guided by the scores that its authors published.

    python docs/freerea.py natsbench_tss_nb201.csv.gz natsbench_tss_proxies.csv.gz

A space of one's own: the table of the benchmark, and beside its accuracies the columns of another table as guides.
"""

import csv
import gzip
import sys
from collections.abc import Callable, Mapping
from functools import partial
from statistics import mean, stdev

from esformer import Budget, Schedule, benchmarks, search
from esformer.benchmarks.architecture import GeneArchitecture, Standing
from esformer.benchmarks.space import TableSpace

PREFIXES = {"cifar10": "c10", "cifar100": "c100", "imagenet16-120": "im"}
PUBLISHED = ("naswot", "logsynflow")
GUIDES = ("naswot + logsynflow + skipped_layers", *PUBLISHED, "skipped_layers", "parameters", "sed", "accuracy")
SEEDS = 20
EVALUATIONS = 500


class PublishedScores(TableSpace):
    """NATS-Bench's topologies, with the scores of a table that its index joins to the benchmark's."""

    def __init__(self, table: str, proxies: str, dataset: str) -> None:
        super().__init__(benchmarks.get("nats-tss"), table, dataset)
        names = {row["index"]: row["arch"] for row in rows_of(table)}
        columns = {name: f"{PREFIXES[dataset]}_{name}_freerea" for name in PUBLISHED}
        self.published = {
            names[row["index"]]: {name: float(row[column]) for name, column in columns.items()}
            for row in rows_of(proxies)
        }

    @property
    def scores(self) -> Mapping[str, Callable[[GeneArchitecture], float]]:
        return {**super().scores, **{name: partial(self._look_up, name) for name in PUBLISHED}}

    def _look_up(self, name: str, architecture: GeneArchitecture) -> float:
        return self.published[architecture.notation][name]


def rows_of(table: str) -> list[dict[str, str]]:
    """The rows of a CSV file, plain or gzipped."""
    with (gzip.open if table.endswith(".gz") else open)(table, "rt") as file:
        return list(csv.DictReader(file))


def searched(space: TableSpace, guide: str, seed: int) -> Standing:
    """How good what FreeREA's evolution finds is: 25 alive, tournaments of 5, one gene a mutation."""
    schedule = Schedule(
        "evaluations",
        starts=1,
        start_length=EVALUATIONS,
        total=EVALUATIONS,
        start_population=25,
        start_tournament=5,
        start_proxy=guide,
        mutated_genes=1,
        sum="largest",
    )
    return space.standing(search(space, Budget(), schedule, seed=seed).genotype)


def main(table: str, proxies: str, seeds: int = SEEDS) -> dict[tuple[str, str], list[Standing]]:
    """Search with every guide on every dataset, and print mean and standard deviation of the accuracies found."""
    spaces = {dataset: PublishedScores(table, proxies, dataset) for dataset in PREFIXES}
    found = {}
    print(f"| guided by | {' | '.join(spaces)} |\n|---|{'---|' * len(spaces)}")
    for guide in GUIDES:
        cells = []
        for dataset, space in spaces.items():
            found[guide, dataset] = [searched(space, guide, seed) for seed in range(seeds)]
            accuracies = [one.accuracy for one in found[guide, dataset]]
            cells.append(f"{mean(accuracies):.2f} ± {stdev(accuracies):.2f}")
        print(f"| {guide} | {' | '.join(cells)} |", flush=True)
    print(f"| the best there is | {' | '.join(f'{found[guide, dataset][0].best:.2f}' for dataset in spaces)} |")
    return found


if __name__ == "__main__":
    main(*sys.argv[1:3])
