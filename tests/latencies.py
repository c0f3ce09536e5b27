"""Tables of latencies that take no time: what a layer takes follows from its MACs and values."""

from esformer.genotype import Genotype
from esformer.model.latency_fit import work
from esformer.model.latency_table import LatencyTable
from esformer.model.layers import layers

RUN = 0.02


def layer_ms(layer):
    """Milliseconds of a layer on an imaginary device, which the features of a layer can say exactly."""
    unit = {"products": 3e-6 * layer.pixels, "groups": 1e-6 * layer.pixels}
    return sum(amount * unit.get(name.rpartition(" ")[2], 1e-3) for name, amount in work(layer).items())


def network_ms(genotype, img_size, num_classes):
    """A network takes other than its layers: 0.9 of their sum, and 0.05 ms beside."""
    return 0.9 * sum(map(layer_ms, layers(genotype, img_size, num_classes))) + 0.05


def filled(space="S0", img_size=224, num_classes=1000, networks=6):
    """A table as that device would fill it."""
    facts = {"runtime": "onnxruntime 1.0", "device": "imaginary", "threads": "1"}
    table = LatencyTable.drawn(space, img_size, num_classes, networks, facts)
    for number, row in enumerate(table.rows):
        if isinstance(row.what, Genotype):
            table.fill(number, network_ms(row.what, img_size, num_classes))
        else:
            table.fill(number, RUN + row.times * layer_ms(row.what))
    return table
