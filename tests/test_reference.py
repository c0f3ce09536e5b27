"""The numbers of `reference.json`: a change that should change no number does not.

`python -m tests.test_reference` writes them anew, for a change that should.
"""

import csv
import json
import random
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch

from esformer import Schedule, SearchSpace, search
from esformer.genotype import Genotype
from esformer.model.cost import Budget
from esformer.proxies import get, names, score
from esformer.proxies.noise import noise_batch
from pipelines import train

FILE = Path(__file__).parent / "reference.json"
CLOSE = 1e-3
"""Relative; processors and versions of PyTorch round otherwise."""
LOOSE = {"zico": 0.01}
"""It divides by differences of gradients, some of which are rounding alone: with AVX-512 one score is 0.4 % lower."""


def scores():
    """Of two genotypes by every proxy."""
    images, labels = map(torch.from_numpy, noise_batch(8, 33, 0))
    found = {}
    for name in names():
        batch = {"images": images, "labels": labels % 10} if get(name).needs == "batch" else {}
        subjects = [SearchSpace.for_size("S0").sample(random.Random(1)), Genotype.shipped("efficientformerv2_s0")]
        found[name] = [score(name, subject, seed=0, img_size=33, draws=1, **batch) for subject in subjects]
    return found


def evaluations():
    """What a short search evaluates, in order: genotypes and scores."""
    sizes = dict(starts=2, start_population=6, start_tournament=2, population=8, tournament=3, seeds=2)
    schedule = Schedule(unit="evaluations", start_length=10, phase_length=8, total=44, **sizes)
    found = search(SearchSpace.for_size("S0"), Budget(params=3_500_000), schedule, seed=0, img_size=33, draws=1)
    return [[Genotype.from_dict(one.genotype).digest, *one.scores.values()] for one in found.journal]


def losses():
    """Of a short training: epoch by epoch in training and validation."""
    with TemporaryDirectory() as folder:
        settings = ["data=digits", "data.limit=256", "data.workers=0", "recipe=quick", "recipe.epochs=2"]
        settings += [
            "recipe.random_erasing=0.3",
            "recipe.drop_path=0.1",
            "trainer.accelerator=cpu",
            "trainer.threads=1",
        ]
        train.main([*settings, "genotype=efficientformerv2_s0", f"run.dir={folder}/run", "wandb.mode=disabled"])
        with (Path(folder) / "run" / "metrics.csv").open(newline="") as file:
            return [[float(row["train/loss"]), float(row["val/loss"])] for row in csv.DictReader(file)]


MEASURED = {"scores": scores, "evaluations": evaluations, "losses": losses}


@pytest.mark.parametrize(
    "what", ["evaluations", *(pytest.param(n, marks=pytest.mark.nightly) for n in ("scores", "losses"))]
)
def test_the_numbers_are_the_same(what):
    expected, measured = json.loads(FILE.read_text())[what], MEASURED[what]()
    assert len(measured) == len(expected)
    if what == "evaluations":
        assert [digest for digest, *_ in measured] == [digest for digest, *_ in expected]
        expected, measured = ([values for _, *values in ones] for ones in (expected, measured))
    items = expected.items() if isinstance(expected, dict) else enumerate(expected)
    for key, value in items:
        assert measured[key] == pytest.approx(value, rel=LOOSE.get(key, CLOSE)), key


if __name__ == "__main__":
    torch.set_num_threads(1)
    FILE.write_text(json.dumps({what: measure() for what, measure in MEASURED.items()}, indent=1) + "\n")
