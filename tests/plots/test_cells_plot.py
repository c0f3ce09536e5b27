"""The cells of DARTS as a picture: every operation stands on it, and nothing is cut off."""

import random
from collections import Counter

import pytest
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch

from esformer import open_space
from esformer.benchmarks.architecture import GeneArchitecture
from esformer.benchmarks.base import BenchmarkError
from esformer.benchmarks.darts import parse
from esformer.plots.architecture import draw_architecture
from esformer.plots.cells import draw_cells


def test_every_operation_stands_on_the_page(tmp_path, monkeypatch):
    figures, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **how: (figures.append(self), save(self, *args, **how)))
    for seed in range(3):
        architecture = open_space("darts").sample(random.Random(seed))
        assert draw_architecture(architecture, tmp_path / "cells.png", "two cells")
        assert (tmp_path / "cells.png").read_bytes().startswith(b"\x89PNG")
        for ax in figures[-1].axes:
            ends = [arrow._posA_posB for arrow in ax.findobj(FancyArrowPatch)]
            assert len(ends) == 12 and all(start[0] < end[0] for start, end in ends)  # from left to right
        page = figures[-1].bbox
        texts = [text for ax in figures[-1].axes for text in ax.texts if text.get_text()]
        genotype = parse(architecture.notation)
        operations = Counter(op for op, _ in (*genotype.normal, *genotype.reduce))
        assert Counter(text.get_text() for text in texts if text.get_text() in operations) == operations
        for text in texts:
            box = text.get_window_extent()
            assert page.x0 < box.x0 and box.x1 < page.x1 and page.y0 < box.y0 and box.y1 < page.y1, text


def test_what_nobody_can_draw_has_no_picture(tmp_path):
    assert not draw_architecture(GeneArchitecture("plain", "1-2"), tmp_path / "none.png", "none")
    assert not (tmp_path / "none.png").exists()
    with pytest.raises(BenchmarkError, match="is no genotype of DARTS"):
        draw_cells("Genotype()", tmp_path / "none.png", "none")
