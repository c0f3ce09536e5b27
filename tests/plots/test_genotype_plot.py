"""Pictures that people can read: no words on top of others, none cut off."""

import random
from itertools import combinations

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from esformer.plots.genotype import draw_genotype
from esformer.space import SearchSpace


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Draw a genotype and give every text of the picture with its place on it, and the picture's size."""

    def drawn(genotype):
        figures = []
        save = Figure.savefig
        monkeypatch.setattr(
            Figure, "savefig", lambda self, *args, **how: (figures.append(self), save(self, *args, **how))
        )
        draw_genotype(genotype, tmp_path / "genotype.png", f"The network found in space {genotype.space}: 3.44 M")
        assert (tmp_path / "genotype.png").read_bytes().startswith(b"\x89PNG")
        texts = [text for text in figures[0].findobj(Text) if text.get_text() and text.get_visible()]
        return [(text.get_text(), text.get_window_extent()) for text in texts], figures[0].bbox

    return drawn


def largest(space):
    return space.build({place: options[-1] for place, options in space.options.items()})


@pytest.mark.parametrize("size", ["S0", "S1", "S2"])
def test_no_words_meet_and_none_is_cut_off(drawn, size):
    space = SearchSpace.for_size(size, extended=True)
    for genotype in (space.sample(random.Random(0)), largest(space)):
        texts, page = drawn(genotype)
        for (word, box), (other, another) in combinations(texts, 2):
            assert not box.overlaps(another), f"{word} lies on {other}"
        for word, box in texts:
            assert page.x0 < box.x0 and box.x1 < page.x1 and page.y0 < box.y0 and box.y1 < page.y1, word


def test_every_gene_is_said(drawn):
    genotype = SearchSpace.for_size("S2").sample(random.Random(0))
    words = [word.replace("\N{MULTIPLICATION SIGN}", "x") for word, _ in drawn(genotype)[0]]
    wanted = ["IBN FFN: kernel", "ConvNeXt FFN: kernel", "stage 4\n1/32 resolution"]
    for block in genotype.blocks():
        wanted += [str(block.out), f"x{block.ratio}"]
        wanted += (
            [f"{block.kernel}x{block.kernel}"]
            if hasattr(block, "kernel")
            else [f"{block.heads}x{block.head_dim}", "3x3"]
        )
    for word in set(wanted):
        assert words.count(word) == wanted.count(word), word
