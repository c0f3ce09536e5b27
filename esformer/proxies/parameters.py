"""The number of parameters: the baseline that a proxy has to beat."""

from typing import ClassVar

from torch import nn

from esformer.genotype import Genotype
from esformer.model.cost import cost
from esformer.proxies.base import Draw, Needs, Proxy


class Parameters(Proxy):
    """How many learnable numbers the network has."""

    name = "parameters"
    needs: ClassVar[Needs] = "forward"
    source: ClassVar[str] = "a count; the #Param of SED's Table 2"

    def measure(self, subject: nn.Module, draw: Draw) -> float:
        return sum(parameter.numel() for parameter in subject.parameters())

    def measure_genotype(self, genotype: Genotype, draw: Draw) -> float:
        return cost(genotype, draw.image_shape[1:]).params
