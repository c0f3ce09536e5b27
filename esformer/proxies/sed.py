"""SED: the suppression of local entropy decrease, from the numbers of operations alone."""

from collections import Counter
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, exprel
from torch import nn

from esformer.genotype import Genotype
from esformer.proxies.base import Draw, Needs, Proxy, ProxyError
from esformer.topology import Block, Topology

Values = NDArray[np.float64]

MANY = 10_000
"""More operations than any network has."""


class SED(Proxy):
    """Equations 1 to 5: large convolutions and a few skip connections are good, poolings and small convolutions not.

    The score is not SED itself but -log(bound - SED), where `bound` is what no architecture of the space exceeds: the
    same order, told apart where SED is not. For the sigmoid of a channel count is 1 in float64 from 37 channels on, and
    SED then the same for all widths; the difference from the bound is computed without that loss. `values` gives both.
    The smallest widths rule it: blocks more than 37 channels wider than those add nothing that float64 holds.

    Spaces without poolings, or without skip connections, have a constant in their place, as the paper says. ESFormers
    have neither to choose, so SED sees no kernel there, and of the widths little but the smallest.
    """

    name = "sed"
    needs: ClassVar[Needs] = "genotype"
    source: ClassVar[str] = "Zero-Shot NAS via the Suppression of Local Entropy Decrease, definition 4, eq. 1 to 5"

    def measure(self, subject: Any, draw: Draw) -> float:
        if isinstance(subject, Genotype):
            subject = Topology.of(subject)
        elif isinstance(subject, nn.Module):
            subject = of_module(subject)
        return float(self.values(subject)[1])

    @staticmethod
    def values(topology: Topology) -> tuple[Values, Values]:
        """SED as the paper defines it, and the score: one number each, or arrays if the topology counts in arrays."""
        sed: Values = np.zeros(())
        log_short: Values = np.full((), -np.inf)
        distinct = {id(block): block for block in topology.blocks}  # cells are stacked many times
        measured = {number: _block(block, topology.largest_pool) for number, block in distinct.items()}
        for block in topology.blocks:
            value, log_deficit = measured[id(block)]
            sed, log_short = sed + value, np.logaddexp(log_short, log_deficit)
        return sed / len(topology.blocks), np.log(len(topology.blocks)) - log_short


def _block(block: Block, largest_pool: int | None) -> tuple[Values, Values]:
    """A block's summand of equation 4, and the logarithm of what it lacks to the largest a block can have."""
    large = sum(count for kernel, count in block.convs.items() if largest_pool is None or kernel >= largest_pool)
    small = sum(block.convs.values()) - large
    skip_sed = 1 if block.skips is None else expit(block.skips) * block.skips  # equation 1
    pool_sed: Any = 1
    most = 1
    if block.pools is not None:  # equation 3
        pools = sum(block.pools.values())
        total = large + small + pools + (0 if block.skips is None else block.skips)
        pool_sed, most = large**2 + total**2 - (pools + small) ** 2, 2 * block.slots**2

    # Equation 2 is sigmoid(channels) * large. Were that sigmoid 1, the last factor of equation 5 would be `ideal`; it
    # is less by ideal * (1 - actual) * (1 - exp(-lost)). With the factor of equation 4, the whole loss is `rate` times
    # 1 - sigmoid(channels) = sigmoid(-channels), of which the logarithm keeps every digit.
    channels = np.asarray(block.channels, dtype=np.float64)
    exponent = skip_sed * large
    ideal, actual = expit(exponent), expit(exponent * expit(channels))
    value = expit(channels) * block.shrink * pool_sed * actual
    lost = exponent * expit(-channels)
    rate = ideal * (1 - actual) * exponent * exprel(-lost) + actual
    # A block of the space reaches at most `highest` in that factor; `gap` is what the ideal one lacks to it.
    highest, gap = (
        (1.0, expit(-exponent)) if block.skips is not None else (expit(block.slots), expit(block.slots) - ideal)
    )
    with np.errstate(divide="ignore"):  # nothing is lacking, or nothing is there to lose
        by_operations = np.log((most - pool_sed) * highest + pool_sed * gap)
        by_channels = np.log(pool_sed * rate) - np.logaddexp(0, channels)
    return value, np.log(block.shrink) + np.logaddexp(by_operations, by_channels)


def of_module(network: nn.Module) -> Topology:
    """The topology or genotype that a network carries, or else all its convolutions and poolings as one block.

    Its skip connections cannot be seen, so a constant stands for them; nor can its space, so the bound is a large one.

    Raises:
        ProxyError: it carries none, and has no convolutions or no poolings.
    """
    given = getattr(network, "topology", None) or getattr(network, "genotype", None)
    if isinstance(given, Topology):
        return given
    if isinstance(given, Genotype):
        return Topology.of(given)
    convs: Counter[int] = Counter()
    pools: Counter[int] = Counter()
    channels = 0
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            convs[min(module.kernel_size)] += 1
            channels = module.out_channels
        elif isinstance(module, nn.MaxPool2d | nn.AvgPool2d):
            pools[-(-_first(module.kernel_size) // _first(module.stride))] += 1
    if not convs or not pools:
        lacking = "poolings" if convs else "convolutions"
        raise ProxyError(
            f"sed compares convolutions with poolings, and this network has no {lacking}; "
            "score its genotype or its esformer.topology.Topology instead"
        )
    return Topology((Block(MANY, convs, pools, None, channels),), max(pools))


def _first(size: int | tuple[int, ...]) -> int:
    return size[0] if isinstance(size, tuple) else size
