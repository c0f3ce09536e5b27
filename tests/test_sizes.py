"""A size is one entry of `esformer/choices.py`; what cannot follow from it by itself is named here."""

import re
from pathlib import Path

import pytest
import timm

from esformer.choices import SIZES, size_of
from esformer.errors import ESFormerError
from esformer.genotype import Genotype
from esformer.model import registry  # noqa: F401 (which makes the timm models)
from esformer.model.cost import Budget, cost
from esformer.space import SearchSpace

PROGRAM = """
from pathlib import Path

from esformer import choices

ENTRY = '"XS": Size((StageChoices(1, 0, (16, 24)), StageChoices(2, 0, (24, 32)), StageChoices(3, 1, (48, 56)),'
ENTRY += ' StageChoices(2, 1, (88, 96))), params=900_000, macs=100_000_000, reference="efficientformerv2_s0"),'
text = Path(choices.__file__).read_text()
assert text.count("_SIZES = {") == 1
exec(compile(text.replace("_SIZES = {", "_SIZES = {" + ENTRY), choices.__file__, "exec"), vars(choices))

from pipelines import search

small = ["search.total=20", "search.start_length=6", "search.phase_length=4", "search.img_size=33"]
summary = search.main(["--size", "XS", "--quick", *small, "run.dir=run", "wandb.mode=disabled"])
assert summary["params"] <= 900_000, summary
try:
    search.main(["--help"])
except SystemExit:
    pass
"""


@pytest.mark.nightly
def test_a_new_size_is_one_entry(fresh_process, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = " ".join(fresh_process("-c", PROGRAM).split())
    assert "XS 0.9 M and 0.1 G" in said
    assert (tmp_path / "run" / "genotype.yaml").read_text().count("space: XS") == 1


def test_an_unknown_size_is_refused():
    with pytest.raises(ESFormerError, match="there is no size 'S3'; there are S0, S1, S2"):
        size_of("S3")


@pytest.mark.parametrize("size", SIZES)
def test_each_size_has_its_genotypes_and_its_timm_model(size):
    name, space, budget = f"esformer_{size.lower()}", SearchSpace.for_size(size), Budget.for_size(size)
    assert Genotype.shipped(size_of(size).reference) in space, "esformer/genotypes: what a search must beat"
    shipped = Genotype.shipped(name)
    assert shipped in space and budget.allows(cost(shipped)), f"esformer/genotypes/{name}.yaml"
    assert timm.is_model(name), "esformer/model/registry.py"


def test_the_array_of_jobs_has_every_size():
    script = Path(__file__).parent.parent / "slurm" / "array.sbatch"
    text = script.read_text()
    assert re.search(r"^sizes=\((.*)\)$", text, re.M).group(1).split() == [*SIZES], script
    assert re.search(r"^#SBATCH --array=(\S+)$", text, re.M).group(1) == f"0-{len(SIZES) - 1}", script
