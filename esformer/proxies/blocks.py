"""The feature maps of a network's primary blocks, which the three proxies of AZ-NAS look at."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from esformer.proxies.base import Draw, ProxyError
from esformer.proxies.prepare import initialise

BATCH = 8
"""Random images; the authors take 64."""
_CONTAINERS = (nn.Sequential, nn.ModuleList)
_STAGE = ("blocks", "layers", "stages")


def primary_blocks(network: nn.Module) -> list[nn.Module]:
    """What stands in the containers of a network, as timm's are built: blocks, or those of a stage instead of it.

    Single layers count where there is nothing else, as in a plain nn.Sequential.
    """
    found = list(_contained(network))
    return [block for block in found if block._modules] or found


def _contained(network: nn.Module) -> Iterator[nn.Module]:
    for child in network.children():
        stage = any(isinstance(getattr(child, name, None), _CONTAINERS) for name in _STAGE)
        if stage or isinstance(child, _CONTAINERS):
            yield from _contained(child)
        elif isinstance(network, _CONTAINERS) and any(p.ndim > 1 for p in child.parameters()):
            yield child


def block_features(name: str, network: nn.Module, draw: Draw) -> list[Tensor]:
    """What each primary block gives for standard normal images, B, H, W, C or B, N, C, in order of computation.

    The weights are Kaiming-normal, norms use the batch's statistics.

    Raises:
        ProxyError: there are fewer than two such feature maps.
    """
    last = getattr(network, "output_fmt", "NCHW") == "NHWC"  # timm's word for it
    network = initialise(network, draw)
    features: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        if not isinstance(output, Tensor) or output.ndim not in (3, 4):
            return None
        # what follows may work in place, so it is given a copy
        if last or output.ndim == 3:
            features.append(output)
            return output.clone()
        features.append(output.permute(0, 2, 3, 1))
        return features[-1].permute(0, 3, 1, 2).clone()

    hooks = [block.register_forward_hook(keep) for block in set(primary_blocks(network))]
    network(torch.randn(BATCH, *draw.image_shape, dtype=torch.float32, generator=draw.generator))
    for hook in hooks:
        hook.remove()
    if len(features) < 2:
        raise ProxyError(
            f"{name} compares the feature maps of blocks (in an nn.Sequential or nn.ModuleList), and found"
            f" {len(features)} of at least 2"
        )
    return features


def expressivity(name: str, feature: Tensor) -> float:
    """The entropy of a feature map's principal components: - sum of p log p, where p is each one's share of variance.

    Raises:
        ProxyError: the feature map does not vary, or is not finite.
    """
    points = feature.detach().flatten(0, -2).double()  # B * positions, C
    points = points - points.mean(0)
    if not points.isfinite().all() or not points.any():
        raise ProxyError(f"{name} is not defined here: the feature map of a block does not vary, or is not finite")
    variances = torch.linalg.eigvalsh(points.t() @ points / len(points)).clamp_min(0)
    shares = variances / variances.sum()
    return float(torch.special.entr(shares).sum())
