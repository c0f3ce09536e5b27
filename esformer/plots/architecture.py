"""An architecture of any space as a picture, where there is one of its kind."""

from pathlib import Path
from typing import Any

from esformer.benchmarks.darts_space import DartsSpace
from esformer.genotype import Genotype
from esformer.plots.cells import draw_cells
from esformer.plots.genotype import draw_genotype


def draw_architecture(architecture: Any, path: Path, title: str) -> bool:
    """An ESFormer block by block, or the cells of DARTS; False, and no picture, for all else.

    Args:
        architecture: of any space.
        path: the PNG.
        title: of the picture.
    """
    if isinstance(architecture, Genotype):
        draw_genotype(architecture, path, title)
        return True
    if architecture.space == DartsSpace.name:
        draw_cells(architecture.notation, path, title)
        return True
    return False
