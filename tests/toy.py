"""A space as somebody writes one who knows of `network` alone."""

from torch import nn

from esformer import GeneSpace


class Toy(GeneSpace):
    name, genes = "toy", (("4", "8"),)

    def network(self, values):
        width = int(values[0])
        head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, self.num_classes))
        return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), head)
