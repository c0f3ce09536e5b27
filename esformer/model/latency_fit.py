"""The latency of any layer, from those of some: a sum of what its convolutions and passes over memory take.

A layer is described by amounts of work (`work`), such as the products of its 1x1 convolutions at its resolution. What
a unit of each takes is fitted to measured layers, by least squares of the relative error and never below zero. Runtimes
compute channels in groups, so products are counted with widths as they are and rounded up to 16, and the fit chooses.

Source: none; nn-Meter (https://dl.acm.org/doi/10.1145/3458864.3467882) adds the latencies of parts too, by random
forests from thousands of them.
"""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy.optimize import nnls
from scipy.stats import spearmanr

from esformer.choices import bottleneck_width
from esformer.genotype import ConvBlock, Genotype, TransformerLayer
from esformer.model.cost import cost
from esformer.model.latency_table import LatencyTable, LatencyTableError, Row
from esformer.model.layers import Layer, layers

Work = dict[str, float]
"""Amounts of work by their names."""
GROUP = 16
"""Channels that are computed at once by the vectors of today's CPUs."""


FEWEST = 5
"""Networks for calibration without which a network is the sum of its layers."""


@dataclass(frozen=True, slots=True)
class LatencyError:
    """How far predicted latencies are from measured ones, of networks that predicting knows nothing of.

    Args:
        mean: of the absolute relative errors, from 0 to 1.
        largest: of them.
        spearman: rank correlation of what is predicted and what was measured.
        networks: how many there were.
    """

    mean: float
    largest: float
    spearman: float
    networks: int

    def __str__(self) -> str:
        return (
            f"{self.mean:.1%} on average and {self.largest:.1%} at most, Spearman {self.spearman:.3f},"
            f" of {self.networks} held-out networks"
        )


@dataclass(frozen=True)
class LatencyModel:
    """The latency of any network of a space, as a table tells it: the sum of its layers', calibrated on whole networks.

    A network takes other than the sum of its layers, whose weights come from farther away if there are more of them. So
    its latency is a multiple of the sum, a time for each parameter, and a time for the run, none of them below zero.

    Args:
        digest: of the table.
        img_size: height and width of the image in pixels.
        num_classes: of the classifier, unless another number is asked for.
        times: milliseconds of a unit of each kind of work.
        whole: what the sum of a network's layers is multiplied with, ms of a million parameters, and ms of a run.
    """

    digest: str
    img_size: int
    num_classes: int
    times: Mapping[str, float]
    whole: tuple[float, float, float] = (1.0, 0.0, 0.0)
    _known: dict[Layer, float] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, table: LatencyTable) -> "LatencyModel":
        """Fit a table.

        Args:
            table: every layer of it measured; of the networks for calibration at least 5, or the sum stands as it is.

        Raises:
            LatencyTableError: layers are not measured yet, or there are none.
        """
        rows = [row for row in table.rows if row.layer is not None]
        if (missing := sum(row.ms is None for row in rows)) or not rows:
            raise LatencyTableError(
                f"{missing} of the {len(rows)} layers of the table have no ms yet: pipelines.latency goes on with it"
            )
        times = _fit([_work_of(row) for row in rows], [row.ms or 0.0 for row in rows])
        model = cls(table.digest, table.img_size, table.num_classes, times)
        networks = [(row.what, row.ms) for row in table.rows if row.part in ("reference", "calibration") and row.ms]
        if len(networks) < FEWEST:
            return model
        parts = [model._parts(network) for network, _ in networks if isinstance(network, Genotype)]
        scale, param, run = _least_squares(np.array(parts), np.array([ms for _, ms in networks]))
        return replace(model, whole=(scale, param, run))

    def __call__(self, genotype: Genotype, num_classes: int | None = None) -> float:
        """Milliseconds of one image.

        Args:
            genotype: of the table's space.
            num_classes: of the classifier; None for the table's.

        Raises:
            LatencyTableError: the table lacks layers of a kind that the network has.
        """
        return sum(map(operator.mul, self.whole, self._parts(genotype, num_classes)))

    def layer(self, layer: Layer) -> float:
        """Milliseconds of a layer by itself, without what a run takes besides.

        Args:
            layer: any of a network of the table's space, for images of the table's size.

        Raises:
            LatencyTableError: the table lacks layers of its kind.
        """
        if layer not in self._known:
            try:
                self._known[layer] = sum(self.times[name] * amount for name, amount in work(layer).items())
            except KeyError as error:
                raise LatencyTableError(
                    f"the table has no layer that tells of {error}: make one of the networks' size, space and images"
                ) from None
        return self._known[layer]

    def error(self, table: LatencyTable) -> LatencyError | None:
        """How well it predicts the networks that a table holds out; None if fewer than two of them are measured.

        Args:
            table: of which this was fitted, or another of the same device.
        """
        held = [(row.what, row.ms) for row in table.rows if row.part == "held-out" and row.ms is not None]
        if len(held) < 2:
            return None
        predicted = np.array([self(genotype) for genotype, _ in held if isinstance(genotype, Genotype)])
        measured = np.array([ms for _, ms in held])
        apart = np.abs(predicted / measured - 1)
        rank = float(spearmanr(predicted, measured).statistic)
        return LatencyError(float(apart.mean()), float(apart.max()), rank, len(held))

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, as a journal keeps it; `LatencyModel(**d)` is the way back."""
        known = {name: getattr(self, name) for name in ("digest", "img_size", "num_classes")}
        return known | {"times": dict(self.times), "whole": list(self.whole)}

    def _parts(self, genotype: Genotype, num_classes: int | None = None) -> tuple[float, float, float]:
        """The sum of its layers, its parameters in millions, and 1 for the run."""
        classes = self.num_classes if num_classes is None else num_classes
        params = cost(genotype, self.img_size, classes).params
        return sum(map(self.layer, layers(genotype, self.img_size, classes))), params / 1e6, 1.0


def _work_of(row: Row) -> Work:
    """The work of a row: its layers', and what a run takes besides, for itself and for values that go in and out."""
    assert row.layer is not None
    layer, found = row.layer, {name: row.times * amount for name, amount in work(row.layer).items()}
    after = {"stem": -(-layer.pixels // 4), "classifier": 1}.get(layer.part, layer.pixels)
    after = -(-layer.pixels // 2) if "downsampling" in layer.part else after
    return found | {"run": 1.0, "values in and out": layer.chs * layer.pixels**2 + layer.out * after**2}


def _fit(rows: Sequence[Work], ms: Sequence[float]) -> dict[str, float]:
    """What a unit of each kind of work takes."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    amounts = np.array([[row.get(name, 0.0) for name in names] for row in rows])
    return dict(zip(names, _least_squares(amounts, np.array(ms)), strict=True))


def _least_squares(amounts: np.ndarray, ms: np.ndarray) -> list[float]:
    """The x >= 0 for which amounts @ x is nearest to ms, by relative errors."""
    largest = amounts.max(axis=0)
    found = nnls(amounts / largest / ms[:, None], np.ones(len(ms)))[0] / largest
    return [float(f"{x:.6g}") for x in found]  # so that machines that round otherwise agree


def work(layer: Layer) -> Work:
    """What there is to do in a layer.

    Args:
        layer: the layer.
    """
    chs, out, block = layer.chs, layer.out, layer.block
    at = f"{layer.part} at {layer.pixels}"
    if layer.part == "stem":
        return {f"{at}": 1.0, **_products(at, (out // 2, out)), f"{at}: width": out}
    if layer.part == "classifier":
        return {f"{at}": 1.0, **_products(at, (chs, out))}
    if block is None:
        return {f"{at}": 1.0, **_products(at, (chs, out)), f"{at}: width in": chs, f"{at}: width out": out}
    found = _ffn(layer)
    if isinstance(block, TransformerLayer):
        keys = block.heads * block.head_dim
        found |= {
            f"attention, {at}": 1.0,
            **_products(f"attention, {at}", (chs, keys)),
            f"attention, {at}: keys": keys,
            f"attention, {at}: heads": block.heads,
            f"attention, {at}: heads squared": block.heads**2,
            f"attention, {at}: width": chs,
        }
    return found


def _ffn(layer: Layer) -> Work:
    block, chs, out = layer.block, layer.chs, layer.out
    assert block is not None
    at, kernel = f"at {layer.pixels}", block.kernel if isinstance(block, ConvBlock) else 3
    found = {f"block {at}": 1.0, f"sum {at}": out} | ({f"growth {at}": out} if out > chs else {})
    if block.ffn == "bottleneck":
        hidden = bottleneck_width(out, block.ratio)
        found |= _products(f"{kernel}x{kernel} {at}", (hidden, hidden))
        acts = 2 * hidden
    else:
        hidden = chs * block.ratio
        wide = hidden if block.ffn == "ibn" else chs
        found |= {f"depthwise {kernel} {at}": wide}
        acts = hidden + (hidden if block.ffn == "ibn" else 0)
    found |= {f"activation {at}": acts, **_products(f"1x1 {at}", (chs, hidden), (hidden, out))}
    return found


def _products(name: str, *pairs: tuple[int, int]) -> Work:
    return {
        f"{name}: products": sum(a * b for a, b in pairs),
        f"{name}: products in groups": sum(_up(a) * _up(b) for a, b in pairs),
    }


def _up(width: int) -> int:
    return -(-width // GROUP) * GROUP
