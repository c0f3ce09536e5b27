"""Training-free metrics: one file each, one contract (`Proxy`), reached by name."""

import copy
import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from esformer.genotype import Genotype
from esformer.model.esformer import Attention2d, Attention2dDownsample, ESFormer
from esformer.proxies.base import Draw, Proxy, ProxyError
from esformer.proxies.entropic_score import EntropicScore
from esformer.proxies.log_synflow import LogSynflow

__all__ = ["Draw", "Proxy", "ProxyError", "get", "names", "score"]

_PROXIES: dict[str, Proxy] = {proxy.name: proxy for proxy in (EntropicScore(), LogSynflow())}


def names() -> list[str]:
    """The names of all proxies."""
    return sorted(_PROXIES)


def get(name: str) -> Proxy:
    """A proxy by its name.

    Raises:
        ProxyError: there is none of this name.
    """
    if name not in _PROXIES:
        raise ProxyError(f"there is no proxy {name!r}; there are {', '.join(names())}")
    return _PROXIES[name]


def score(
    proxy: str | Proxy, subject: Genotype | nn.Module, seed: int = 0, img_size: int | tuple[int, int] = 224
) -> float:
    """The score of an architecture before any training: a pure function of its arguments.

    The same proxy, genotype, seed and image size give the same score in any process, in any order; a network (which is
    scored as it stands, save for its weights) is left untouched, and so is every global random state.

    Args:
        proxy: the name of a proxy, or one that is configured differently.
        subject: a genotype, scored as an ESFormer of 1,000 classes, or a network that takes B, 3, H, W.
        seed: another seed draws other weights and inputs.
        img_size: height and width of the input in pixels; one number means square.

    Raises:
        ProxyError: the subject cannot be scored, or its score is not finite.
    """
    proxy = get(proxy) if isinstance(proxy, str) else proxy
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    identity = subject.digest if isinstance(subject, Genotype) else "network"
    total = 0.0
    with _one_thread():
        measured = subject if proxy.needs == "genotype" else _network(subject, (height, width))
        for i in range(proxy.draws):
            digest = hashlib.sha256(f"{proxy.name}/{identity}/{seed}/{height}x{width}/{i}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
            total += proxy.measure(measured, Draw(generator, (3, height, width)))
    mean = total / proxy.draws
    if not math.isfinite(mean):
        raise ProxyError(
            f"{proxy.name} is {mean} for this network at {height} x {width}: its values leave float64's range"
        )
    return mean


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums come out the same to the last bit whatever the number of cores, and parallel searches do not collide."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _network(subject: Genotype | nn.Module, img_size: tuple[int, int]) -> nn.Module:
    """A float64 network of its own to measure on, built or copied without touching any random state."""
    if isinstance(subject, nn.Module):
        return copy.deepcopy(subject).to("cpu", torch.float64).requires_grad_()
    with torch.device("meta"):  # no memory, no initialisation: the proxy draws the weights
        network = ESFormer(subject, img_size=img_size).double()
    network.to_empty(device="cpu")
    for module in network.modules():
        if isinstance(module, Attention2d | Attention2dDownsample):
            module.init_non_persistent_buffers()  # where each position finds its attention bias
    return network
