"""The parts of a network cost what timm's do, and together what the whole does."""

import pytest
import timm

from esformer.genotype import Genotype
from esformer.model.cost import Cost, cost
from esformer.model.parts import parts


@pytest.mark.parametrize(("size", "img_size", "classes"), [("S0", 224, 1000), ("S1", 97, 7), ("S2", 32, 10)])
def test_they_add_up(draw, size, img_size, classes):
    for seed in range(3):
        genotype = draw(size, seed, extended=True)
        found = parts(genotype, img_size, classes)
        total = Cost(sum(part.cost.params for part in found), sum(part.cost.macs for part in found))
        assert total == cost(genotype, img_size, classes)
        assert [part.block for part in found if part.block] == list(genotype.blocks())
        assert all(part.cost.params > 0 and part.cost.macs > 0 for part in found)


def test_each_has_the_parameters_of_timms_module():
    def count(module):
        return sum(p.numel() for p in module.parameters())

    theirs = timm.create_model("efficientformerv2_s0")
    expected = [count(theirs.stem)]
    for number, stage in enumerate(theirs.stages):
        expected += [count(stage.downsample)] * (number > 0) + [count(block) for block in stage.blocks]
    found = parts(Genotype.shipped("efficientformerv2_s0"))
    assert [part.cost.params for part in found[:-1]] == expected
    assert [part.shape for part in found if part.block is None] == [
        (32, 56, 56),
        (48, 28, 28),
        (96, 14, 14),
        (176, 7, 7),
        (1000,),
    ]
    assert [part.name for part in found[:4]] == ["stem", "stage 1, block 1", "stage 1, block 2", "downsampling 1"]
