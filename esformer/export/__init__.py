"""A trained network for use elsewhere: norms folded, files that others read, and a model card."""

from esformer.export.comparing import Difference, ExportError, compare
from esformer.export.folding import SpeedUp, fold, speed_up
from esformer.export.formats import FORMATS

__all__ = ["FORMATS", "Difference", "ExportError", "SpeedUp", "compare", "fold", "speed_up"]
