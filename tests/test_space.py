import copy
import itertools
import pickle
import random
from collections import Counter
from dataclasses import FrozenInstanceError, replace

import pytest

from esformer.choices import GROUPS, SPACES, Choices, StageChoices, choices_of
from esformer.genotype import Genotype, GenotypeError
from esformer.space import SearchSpace

DIGESTS = {
    "S0": "255de61b5a4823e2",
    "S1": "36fcd4e58d0f13f9",
    "S2": "bd7b1358b01f86aa",
    "S0-extended": "82dfc5014eabdc5c",
    "S1-extended": "9d7bdb075c44a9d6",
    "S2-extended": "a5203bccd895406c",
}
DRAW = """
import random, sys
from esformer.choices import choices_of
from esformer.space import SearchSpace
for name in sys.argv[1:]:
    space, rng = SearchSpace(choices_of(name)), random.Random(7)
    a, b = space.sample(rng), space.sample(rng)
    print(name, space.mutate(space.crossover(a, b, rng), rng).digest)
"""
# The depths of S0, which a Genotype insists on, with 262,144 combinations of genes, of which few have rising widths.
TINY = replace(
    choices_of("S0"),
    stages=(
        StageChoices(2, 0, (16, 40)),
        StageChoices(2, 0, (24, 48)),
        StageChoices(6, 2, (48, 64)),
        StageChoices(4, 2, (88, 96)),
    ),
    ffn=("ibn",),
    kernel=(3,),
    ratio=(4,),
    head_dim=(16,),
    heads=(4, 6),
)


@pytest.fixture(params=SPACES)
def space(request):
    return SearchSpace(choices_of(request.param))


def differing(a, b, space):
    """The places at which two genotypes differ, with what each has there."""
    ours, theirs = space.values(a), space.values(b)
    return {place: (ours[place], theirs[place]) for place in ours if ours[place] != theirs[place]}


def test_each_size_is_the_space_of_its_name():
    for size in ("S0", "S1", "S2"):
        assert SearchSpace.for_size(size).name == size
        assert SearchSpace.for_size(size, extended=True).name == f"{size}-extended"
        assert "bottleneck" not in SearchSpace.for_size(size).choices.ffn
        assert "bottleneck" in SearchSpace.for_size(size, extended=True).choices.ffn
    for wrong in ("S3", "s0", ""):
        with pytest.raises(ValueError, match="S0, S1, S2"):
            SearchSpace.for_size(wrong)


def test_depths_and_transformer_layers_are_efficientformerv2s():
    shapes = {
        size: [(stage.blocks, stage.transformers) for stage in SearchSpace.for_size(size).choices.stages]
        for size in ("S0", "S1", "S2")
    }
    assert shapes["S0"] == [(2, 0), (2, 0), (6, 2), (4, 2)]
    assert shapes["S1"] == [(3, 0), (3, 0), (9, 2), (6, 2)]
    assert shapes["S2"] == [(4, 0), (4, 0), (12, 4), (8, 4)]


def test_efficientformerv2_is_in_its_space_and_in_no_other_size():
    for size in ("S0", "S1", "S2"):
        genotype = Genotype.shipped(f"efficientformerv2_{size.lower()}")
        homes = [name for name in SPACES if genotype in SearchSpace(choices_of(name))]
        assert homes == [size, f"{size}-extended"]
    assert "S0" not in SearchSpace.for_size("S0")


def test_a_plain_genotype_moves_on_in_the_extended_space(draw):
    space, rng = SearchSpace.for_size("S0", extended=True), random.Random(0)
    plain = draw("S0")
    mutants = [space.mutate(plain, rng, "topology") for _ in range(50)]
    assert all(mutant in space for mutant in mutants)
    assert any(block.ffn == "bottleneck" for mutant in mutants for block in mutant.blocks())
    assert any(mutant not in SearchSpace.for_size("S0") for mutant in mutants)


def test_a_bottleneck_and_another_size_are_outside(draw):
    extended = SearchSpace.for_size("S0", extended=True)
    outside = extended.build(extended.values(draw("S0")) | {(3, "ffn"): "bottleneck"})
    assert outside in extended and outside not in SearchSpace.for_size("S0")
    with pytest.raises(ValueError, match="of space S1, not of S0"):
        SearchSpace.for_size("S0").values(draw("S1"))


def test_thousands_of_draws_stay_inside(space):
    rng = random.Random(0)
    a, b = space.sample(rng), space.sample(rng)
    seen = {place: set() for place in space.options}
    for i in range(600):
        group = ("topology", "size", "all")[i % 3]
        mutant, child = space.mutate(a, rng, group), space.crossover(a, b, rng, group)
        changes = differing(a, mutant, space)
        assert changes and {gene for _, gene in changes} <= set(GROUPS[group])
        inherited = differing(a, child, space)
        assert inherited == {place: pair for place, pair in differing(a, b, space).items() if place in inherited}
        assert {gene for _, gene in inherited} <= set(GROUPS[group])
        a, b = mutant, space.sample(rng)
        for genotype in (mutant, child, b):
            assert genotype in space and genotype.space == space.name
            assert Genotype(genotype.space, genotype.stages) == genotype  # which checks every gene
            widths = [block.out for block in genotype.blocks()]
            assert widths == sorted(widths)
            for place, value in space.values(genotype).items():
                seen[place].add(value)
    # nothing that is allowed is out of reach: each value of each gene turns up, save for rare extremes of width
    assert all(seen[place] == set(allowed) for place, allowed in space.options.items() if place[1] != "out")
    assert all(len(seen[place]) > 1 for place in space.options)


def test_a_mutation_changes_few_genes_and_many(space):
    rng = random.Random(1)
    parent = space.sample(rng)
    changes = Counter(len(differing(parent, space.mutate(parent, rng, "topology"), space)) for _ in range(600))
    places = len(space.places("topology"))
    # the number of topology genes redrawn, each to another value, is uniform from 1 to all
    assert min(changes) == 1 and max(changes) == places
    expected = 600 / places
    assert sum((changes[n] - expected) ** 2 / expected for n in range(1, places + 1)) < 2 * places


def test_each_gene_of_a_crossover_comes_from_either_parent_equally():
    space, rng = SearchSpace.for_size("S0"), random.Random(0)
    a, b = space.sample(rng), space.sample(rng)
    places = [place for place in differing(a, b, space) if place[1] != "out"]
    children = [space.crossover(a, b, rng) for _ in range(400)]
    for place in places:
        ours = sum(space.values(child)[place] == space.values(a)[place] for child in children)
        assert 150 < ours < 250
    assert len(set(children)) > 390


def test_crossing_a_genotype_with_itself_gives_it_again(space):
    genotype = space.sample(random.Random(0))
    assert space.crossover(genotype, genotype, random.Random(1)) == genotype


def test_the_same_seed_gives_the_same_genotype_in_every_process(fresh_process):
    for hash_seed in ("1", "99"):
        printed = fresh_process("-c", DRAW, *SPACES, PYTHONHASHSEED=hash_seed).split()
        assert dict(zip(printed[::2], printed[1::2], strict=True)) == DIGESTS


def test_space_and_cost_are_light(fresh_process):
    code = "import sys, esformer.space, esformer.model.cost; print('torch' in sys.modules)"
    assert fresh_process("-c", code).strip() == "False"


def test_cardinality_equals_an_enumeration():
    space = SearchSpace(TINY)
    counted = 0
    widths = [allowed for (_, gene), allowed in space.options.items() if gene == "out"]
    values = {place: allowed[0] for place, allowed in space.options.items()}
    for combination in itertools.product(*widths):
        try:
            space.build(values | {(i, "out"): width for i, width in enumerate(combination)})
            counted += 1
        except GenotypeError:
            pass
    assert space.cardinality == counted * 2**4  # heads of four Transformer layers


def test_cardinality_of_the_sizes_grows_with_the_ffn_kinds():
    for size, blocks in (("S0", 14), ("S1", 21), ("S2", 28)):
        plain, extended = (SearchSpace.for_size(size, extended).cardinality for extended in (False, True))
        assert extended * 2**blocks == plain * 3**blocks


def test_sampling_is_uniform_over_the_whole_space():
    space, rng = SearchSpace(TINY), random.Random(0)
    drawn = Counter(tuple(block.out for block in space.sample(rng).blocks()) for _ in range(12_000))
    kinds = space.cardinality // 2**4
    assert len(drawn) == kinds
    expected = 12_000 / kinds
    chi_square = sum((n - expected) ** 2 / expected for n in drawn.values())
    assert abs(chi_square - (kinds - 1)) < 4 * (2 * kinds) ** 0.5  # mean and deviation of a chi-square


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda g: pickle.loads(pickle.dumps(g))])
def test_a_drawn_genotype_is_as_good_as_one_that_was_checked(space, copied):
    drawn = space.sample(random.Random(0))
    checked = Genotype.from_dict(drawn.to_dict())
    for genotype in (drawn, copied(drawn)):
        assert genotype == checked and hash(genotype) == hash(checked) and repr(genotype) == repr(checked)
        assert genotype.digest == checked.digest
        with pytest.raises(FrozenInstanceError):
            genotype.space = "S1"


def test_a_space_of_other_choices_than_its_name_says_draws_nothing_invalid():
    space = SearchSpace(replace(choices_of("S0"), kernel=(9,)))
    with pytest.raises(GenotypeError, match="kernel is 9"):
        space.sample(random.Random(0))
    assert Genotype.shipped("efficientformerv2_s0") not in space


def test_a_copied_space_draws_the_same(space):
    used = pickle.loads(pickle.dumps(space))
    assert used.sample(random.Random(0)) == space.sample(random.Random(0))
    for again in (used, pickle.loads(pickle.dumps(space)), copy.deepcopy(space)):
        assert again == space and again.sample(random.Random(1)) == space.sample(random.Random(1))


def test_a_gene_with_one_value_stays_as_it_is():
    fixed = replace(choices_of("S0"), kernel=(3,), heads=(8,), head_dim=(32,))
    space, rng = SearchSpace(fixed), random.Random(0)
    parent = space.sample(rng)
    for _ in range(50):
        mutant = space.mutate(parent, rng)
        assert mutant in space and mutant != parent


def test_a_mutation_may_redraw_all_widths_together():
    space, rng = SearchSpace.for_size("S0"), random.Random(0)
    wide = space.build({place: max(allowed) for place, allowed in space.options.items()})
    narrower = [space.mutate(wide, rng, "size") for _ in range(100)]
    assert any(all(a.out < b.out for a, b in zip(m.blocks(), wide.blocks(), strict=True)) for m in narrower)


def test_values_and_build_are_inverse(space):
    genotype = space.sample(random.Random(3))
    values = space.values(genotype)
    assert list(values) == list(space.options) == space.places("all")
    assert space.build(values) == genotype


def test_topology_and_size_genes_are_table_1():
    assert GROUPS["topology"] == ("ffn", "kernel", "heads")
    assert GROUPS["size"] == ("out", "ratio", "head_dim")
    space = SearchSpace.for_size("S0")
    assert sorted(space.places("topology") + space.places("size")) == sorted(space.places("all"))
    with pytest.raises(ValueError, match="topology, size, all"):
        space.places("depth")


def test_choices_say_what_each_block_may_be():
    choices = Choices("S0", choices_of("S0").stages)
    assert set(choices.of(2, 3)) == {"ffn", "kernel", "out", "ratio"}
    assert set(choices.of(2, 4)) == {"ffn", "heads", "out", "ratio", "head_dim"}
    assert choices.of(0, 0)["out"] == (16, 24, 32, 40, 48)
