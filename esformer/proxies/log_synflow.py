"""LogSynflow: Synflow with the gradients' logarithm (FreeREA; the size metric of section 3.3)."""

from typing import ClassVar

from torch import Tensor

from esformer.proxies.synflow import Synflow


class LogSynflow(Synflow):
    """S = sum over weights of |w log(1 + |dR/dw|)|, where R is the sum of the outputs for an input of ones.

    The network is prepared as for Entropic Score. Gradients are then non-negative but for those through a softmax, of
    which the magnitude counts. A saturated softmax passes none at all, so queries and keys add nothing, and of
    heads and head_dim only the product counts, through the values (measured in docs/results.md).
    """

    name = "log_synflow"
    source: ClassVar[str] = "FreeREA: Training-Free Evolution-based Architecture Search (WACV 2023), section 3.2"

    def flow(self, weight: Tensor, gradient: Tensor) -> Tensor:
        return (weight * gradient.abs().log1p()).abs()
