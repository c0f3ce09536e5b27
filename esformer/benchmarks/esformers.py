"""Trained ESFormers: this project's own table, one row a training, and its architectures as a benchmark.

A row holds the genotype, how it was drawn, its cost, the seed and the accuracy of every epoch. `pipelines.survey` makes
such tables; the one that is shipped lies beside this file, with the protocol that made it.
"""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from itertools import islice
from pathlib import Path

from torch import nn

from esformer.benchmarks.base import BenchmarkError, Dataset, Entry, GeneBenchmark
from esformer.benchmarks.tables import read_csv
from esformer.choices import GROUPS, choices_of
from esformer.files import write_text
from esformer.genotype import Genotype, GenotypeError, notation, parse
from esformer.model.cost import Cost, cost
from esformer.model.esformer import ESFormer
from esformer.topology import Topology

SHIPPED = Path(__file__).parent / "esformers.csv"
"""S0 on CIFAR-10; docs/survey.md says how it was made."""


@dataclass(frozen=True)
class Training:
    """One training of one network: a line of the table.

    Args:
        genotype: in the notation of `notation`.
        drawn: how the survey came to it, such as `at cost` or `high naswot 3`; the two ends of a pair share a number.
        seed: of the training.
        params: parameters, with the classifier of the data's classes.
        macs: multiply-accumulates of one image of the data's size.
        top1: accuracy on the validation images after each epoch, in percent.
        ema_top1: the same of the averaged weights; empty if there were none.
        seconds: spent in training steps, without evaluation.
        versions: of the code and the libraries that trained it.
    """

    genotype: str
    drawn: str
    seed: int
    params: int
    macs: int
    top1: tuple[float, ...]
    ema_top1: tuple[float, ...]
    seconds: float
    versions: str


COLUMNS = [field.name for field in fields(Training)]


def read_trainings(table: Path) -> list[Training]:
    """The lines of a table of trainings, in its order.

    Raises:
        BenchmarkError: it is not there, or not such a table, or is empty, or holds a training twice.
    """
    trainings: dict[tuple[str, int], Training] = {}
    for number, row in enumerate(read_csv(table, *COLUMNS), 1):
        where = f"{table}: training {number}"
        genotype, drawn, seed, params, macs, top1, ema_top1, seconds, versions = row
        try:
            known = notation(_parse(genotype))
        except BenchmarkError as error:
            raise BenchmarkError(f"{where}: {error}") from None
        try:
            raw, averaged = (tuple(map(float, text.split())) for text in (top1, ema_top1))
            line = Training(known, drawn, int(seed), int(params), int(macs), raw, averaged, float(seconds), versions)
        except ValueError as error:
            raise BenchmarkError(f"{where}: {error}") from None
        if not line.top1 or not all(0 <= accuracy <= 100 for accuracy in (*line.top1, *line.ema_top1)):
            raise BenchmarkError(f"{where}: top1 is {top1!r}; it must hold a percentage for each epoch")
        if trainings.setdefault((known, line.seed), line) is not line:
            raise BenchmarkError(f"{where}: seed {seed} of this genotype is there twice")
    if not trainings:
        raise BenchmarkError(f"{table}: holds no training")
    return list(trainings.values())


def write_trainings(table: Path, trainings: Sequence[Training]) -> None:
    """Write a table of trainings, whole or not at all."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for training in trainings:
        writer.writerow(" ".join(map(str, value)) if type(value) is tuple else value for value in astuple(training))
    write_text(table, text.getvalue())


SEARCHED = choices_of("S0")
"""The space that is searched among the trained."""
GENES = [(gene, values) for stage in SEARCHED.options for block in stage for gene, values in block.items()]


class ESFormers(GeneBenchmark):
    """Hybrid networks of ESFormer's own space, trained by `pipelines.survey`."""

    name = "esformer"
    source = "this project's own trainings, docs/survey.md"
    shipped = SHIPPED
    datasets = {"cifar10": Dataset(10, 48)}  # brought to 48 pixels
    genes = tuple(tuple(map(str, values)) for _, values in GENES)
    group = tuple("topology" if gene in GROUPS["topology"] else "size" for gene, _ in GENES)

    def spell(self, values: Sequence[str]) -> str:
        left = iter(values)
        stages = (" ".join(".".join(islice(left, len(block))) for block in stage) for stage in SEARCHED.options)
        return f"{SEARCHED.space}: {' / '.join(stages)}"

    def is_connected(self, architecture: str) -> bool:
        self.values(architecture)  # refuses one of another space
        return True

    def values(self, architecture: str) -> tuple[str, ...]:
        genotype = _parse(architecture)
        if genotype.space != SEARCHED.space:
            raise BenchmarkError(f"{architecture[:80]!r} is of space {genotype.space}, not of {SEARCHED.space}")
        return tuple(str(gene) for stage in genotype.stages for block in stage for gene in block.genes().values())

    def read(self, table: Path, dataset: str = "cifar10") -> list[Entry]:
        """The genotypes of a table; the accuracy is that of the last epoch's weights, mean over the seeds."""
        self.dataset(dataset)
        seeds: dict[str, list[Training]] = {}
        for training in read_trainings(table):
            seeds.setdefault(training.genotype, []).append(training)
        return [
            Entry(text, math.fsum(one.top1[-1] for one in same) / len(same), same[0].params, same[0].macs)
            for text, same in seeds.items()
        ]

    def network(self, architecture: str, dataset: str = "cifar10") -> nn.Module:
        images = self.dataset(dataset)
        return ESFormer(_parse(architecture), images.num_classes, img_size=images.img_size)

    def subject(self, architecture: str, dataset: str = "cifar10") -> Genotype:
        self.dataset(dataset)
        return _parse(architecture)

    def params(self, architecture: str, dataset: str = "cifar10") -> int:
        return self._cost(architecture, dataset).params

    def macs(self, architecture: str, dataset: str = "cifar10") -> int:
        return self._cost(architecture, dataset).macs

    def _cost(self, architecture: str, dataset: str) -> Cost:
        images = self.dataset(dataset)
        return cost(_parse(architecture), images.img_size, images.num_classes)

    def topology(self, architecture: str) -> Topology:
        return Topology.of(_parse(architecture))


def _parse(architecture: str) -> Genotype:
    try:
        return parse(architecture)
    except GenotypeError as error:
        raise BenchmarkError(str(error)) from None
