"""Table 1 is written in one place: another value of a gene there is all that it takes."""

import pytest

PROGRAM = """
import random
from pathlib import Path

import torch

from esformer import choices

text = Path(choices.__file__).read_text()
assert text.count("(3, 5, 7)") == 1
exec(compile(text.replace("(3, 5, 7)", "(3, 5, 7, 9)"), choices.__file__, "exec"), vars(choices))

from esformer import ESFormer, Genotype, SearchSpace, cost, score

space, rng = SearchSpace.for_size("S0"), random.Random(0)
genotype = next(g for g in iter(lambda: space.sample(rng), None) if g.stages[0][0].kernel == 9)
assert Genotype.from_dict(genotype.to_dict()) == genotype and space.mutate(genotype, rng, "topology") in space
network = ESFormer(genotype, 10, img_size=48)
assert network.eval()(torch.zeros(1, 3, 48, 48)).shape == (1, 10)
assert sum(p.numel() for p in network.parameters()) == cost(genotype, 48, 10).params
for proxy in ("entropic_score", "log_synflow"):
    fast, slow = (score(proxy, genotype, img_size=33, reference=reference) for reference in (False, True))
    assert abs(fast / slow - 1) < 1e-4, (proxy, fast, slow)
print("fits")
"""


@pytest.mark.nightly
def test_another_kernel_is_one_value_in_one_place(fresh_process):
    assert fresh_process("-c", PROGRAM) == "fits\n"
