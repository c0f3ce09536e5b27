"""Training-free metrics: one file each, one contract (`Proxy`), reached by name.

Examples:
    >>> names()[:4]
    ['activations', 'az_expressivity', 'az_progressivity', 'az_trainability']
"""

import copy
import hashlib
import math
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.backends import cudnn
from torch.nn.attention import SDPBackend, sdpa_kernel

from esformer import guide, plugins
from esformer.errors import first_line, out_of_memory
from esformer.genotype import Genotype
from esformer.model.attention import Attention2d, Attention2dDownsample
from esformer.model.esformer import MIN_IMAGE, ESFormer
from esformer.proxies.activations import Activations
from esformer.proxies.az_expressivity import AZExpressivity
from esformer.proxies.az_progressivity import AZProgressivity
from esformer.proxies.az_trainability import AZTrainability
from esformer.proxies.base import Draw, Proxy, ProxyError, Subject
from esformer.proxies.cached_weights import cached_weights
from esformer.proxies.dss import DSS
from esformer.proxies.entropic_score import EntropicScore
from esformer.proxies.grad_norm import GradNorm
from esformer.proxies.grasp import GraSP
from esformer.proxies.layer_macs import STRIDES, LayerMACs
from esformer.proxies.log_synflow import LogSynflow
from esformer.proxies.macs import MACs
from esformer.proxies.meco import MeCo
from esformer.proxies.naswot import NASWOT
from esformer.proxies.parameters import Parameters
from esformer.proxies.sed import SED
from esformer.proxies.swap import SWAP
from esformer.proxies.synflow import Synflow
from esformer.proxies.zen_score import ZenScore
from esformer.proxies.zico import ZiCo
from esformer.topology import Topology

__all__ = ["Draw", "Proxy", "ProxyError", "Subject", "get", "names", "register_proxy", "score"]

_PROXIES: dict[str, Proxy] = {
    proxy.name: proxy
    for proxy in (
        EntropicScore(),
        EntropicScore("position"),
        EntropicScore("channel"),
        EntropicScore("batch"),
        LogSynflow(),
        Synflow(),
        NASWOT(),
        NASWOT(norms=False),
        SWAP(),
        SED(),
        GradNorm(),
        GraSP(),
        ZenScore(),
        ZenScore(norms=False),
        AZExpressivity(),
        AZProgressivity(),
        AZTrainability(),
        DSS(),
        ZiCo(),
        MeCo(),
        Parameters(),
        MACs(),
        LayerMACs("depthwise"),
        *(LayerMACs(f"stride {stride}") for stride in STRIDES),
        Activations(),
    )
}


_BUILT_IN = frozenset(_PROXIES)
_OneProxy = TypeVar("_OneProxy", bound=type[Proxy] | Proxy)


def register_proxy(proxy: _OneProxy) -> _OneProxy:
    """Make a proxy known by its name, for `score`, searches and correlations; a decorator of its class.

    Commands find it if an installed package names its module as an entry point of the group `esformer.proxies`; a
    search with several workers sends it to them, which import its module.

    Args:
        proxy: a subclass of `Proxy` that takes no arguments, or an instance.

    Raises:
        ProxyError: it is no proxy, says too little of itself, or its name is taken or cannot be written in a guide.

    Examples:
        >>> @register_proxy
        ... class Blocks(Proxy):
        ...     name, needs, source = "blocks", "genotype", "an example"
        ...
        ...     def measure(self, subject, draw):
        ...         return float(len(list(subject.blocks())))
        >>> score("blocks", Genotype.shipped("esformer_s0"))
        14.0
    """
    try:
        made = proxy() if isinstance(proxy, type) else proxy
    except TypeError as error:
        raise ProxyError(f"{proxy} cannot be made without arguments ({error}); register an instance") from None
    if not isinstance(made, Proxy):
        raise ProxyError(f"{proxy} is not a proxy: derive it from esformer.proxies.Proxy")
    if missing := [name for name in ("name", "needs", "source") if not hasattr(made, name)]:
        raise ProxyError(f"{type(made).__name__} has no {' and no '.join(missing)}, which every proxy has")
    if not re.fullmatch(guide.NAME, made.name):
        raise ProxyError(f"a proxy is called {made.name!r}; its name must be small letters, digits and _")
    known = _PROXIES.get(made.name)
    again = known is not None and _origin(known) == _origin(made)  # as when the cell of a notebook runs twice
    if known is not None and (known.name in _BUILT_IN or not again):
        raise ProxyError(f"there is a proxy {made.name!r} already, {'.'.join(_origin(known))}; choose another name")
    _PROXIES[made.name] = made
    return proxy


def _origin(proxy: Proxy) -> tuple[str, str]:
    return type(proxy).__module__, type(proxy).__qualname__


def registered(names: Iterable[str]) -> tuple[Proxy, ...]:
    """Those of some proxies that are not this library's own.

    Args:
        names: of proxies.
    """
    return tuple(get(name) for name in names if name not in _BUILT_IN)


def names() -> list[str]:
    """The names of all proxies."""
    plugins.load(plugins.PROXIES)
    return sorted(_PROXIES)


def get(name: str) -> Proxy:
    """A proxy by its name.

    Args:
        name: its name, as `names` lists them.

    Raises:
        ProxyError: there is none of this name.
    """
    if name not in _PROXIES and name not in names():  # which looks further
        raise ProxyError(f"there is no proxy {name!r}; there are {', '.join(names())}")
    return _PROXIES[name]


def score(
    proxy: str | Proxy,
    subject: Subject,
    seed: int = 0,
    img_size: int | tuple[int, int] = 224,
    images: Tensor | None = None,
    labels: Tensor | None = None,
    identity: str | None = None,
    draws: int | None = None,
    device: torch.device | str = "cpu",
    reference: bool = False,
) -> float:
    """The score of an architecture before any training: a pure function of its arguments.

    The same proxy, genotype, seed and image size give the same score in any process, in any order; a network (which is
    scored as it stands, save for its weights) is left untouched, and so is every global random state. All genotypes are
    given the same input and, layer by layer, the same weights, as far as their layers are alike (`CachedWeights`).

    Args:
        proxy: the name of a proxy, or one that is configured differently.
        subject: a genotype, scored as an ESFormer of 1,000 classes; a network that takes B, 3, H, W; or, for a proxy
            that needs no network, a topology.
        seed: another seed draws other weights and inputs.
        img_size: height and width of the input in pixels; one number means square.
        images: B, 3, H, W, for the proxies that need a batch; their size then counts instead of `img_size`.
        labels: the classes of the images, B.
        identity: what tells this subject from others, if it is to have draws of its own.
        draws: how many measurements the score is the mean of; by default as many as the proxy's paper takes.
        device: where Entropic Score and LogSynflow of genotypes are computed.
        reference: measure genotypes on their networks too, in float64, where a proxy knows a shorter way.

    Raises:
        ProxyError: the subject cannot be scored, or its score is not finite.

    Examples:
        >>> round(score("entropic_score", Genotype.shipped("esformer_s0"), seed=0, img_size=64), 2)
        10.13
    """
    proxy = get(proxy) if isinstance(proxy, str) else proxy
    if not isinstance(subject, Genotype | Topology | nn.Module):
        kind = type(subject).__name__
        raise ProxyError(f"a {kind} cannot be scored, but a Genotype, a network (nn.Module) or a Topology can")
    height, width = map(int, img_size if isinstance(img_size, tuple) else (img_size, img_size))
    if proxy.needs == "batch":
        images, labels = _check_batch(proxy, images, labels)
        height, width = images.shape[-2:]
    draws = proxy.draws if draws is None else draws
    if draws < 1:
        raise ProxyError(f"a score is the mean of {draws} draws; it takes at least 1")
    genotype = None
    if isinstance(subject, Genotype) and not reference and min(height, width) >= MIN_IMAGE:  # the network refuses less
        genotype = subject
    measured: Subject | None = subject if proxy.needs == "genotype" else None
    total = 0.0
    try:
        with _quiet():
            for number in range(draws):
                draw = partial(_draw, proxy, subject, identity, seed, number, (height, width), images, labels, device)
                value = None if genotype is None or measured is not None else proxy.measure_genotype(genotype, draw())
                if value is None or not math.isfinite(value):
                    measured = _network(proxy, subject, (height, width)) if measured is None else measured
                    fresh = draw()
                    # for what a network draws by itself; torch.manual_seed, of each device, is a hundred times slower
                    torch.default_generator.manual_seed(fresh.generator.initial_seed())
                    value = proxy.measure(measured, fresh)
                total += value
    except ProxyError:
        raise
    except Exception as error:  # somebody's network can raise anything
        if out_of_memory(error):
            raise ProxyError(
                f"{device} has no memory left for {proxy.name} of this network on images of 3 x {height} x {width};"
                " a search needs less with fewer search.workers or a smaller search.img_size, and none of a GPU's with"
                " search.accelerator=cpu"
            ) from None
        raise ProxyError(
            f"{proxy.name} cannot run this network on images of 3 x {height} x {width}: {first_line(error)}"
        ) from error
    mean = total / draws
    kind = str(proxy.dtype).removeprefix("torch.")
    if not math.isfinite(mean):
        raise ProxyError(
            f"{proxy.name} is {mean} for this network at {height} x {width}: its values leave {kind}'s range"
        )
    return mean


def _draw(
    proxy: Proxy,
    subject: Subject,
    identity: str | None,
    seed: int,
    number: int,
    img_size: tuple[int, int],
    images: Tensor | None,
    labels: Tensor | None,
    device: torch.device | str,
) -> Draw:
    """The randomness of one measurement, from the start."""
    height, width = img_size
    of_genotype = isinstance(subject, Genotype)
    key = f"{identity or ('genotype' if of_genotype else 'network')}/{seed}"
    digest = hashlib.sha256(f"{proxy.name}/{key}/{height}x{width}/{number}".encode()).digest()
    start = int.from_bytes(digest[:8], "big") >> 1
    weights = cached_weights(f"{key}/{number}", device) if of_genotype else None  # the same for all proxies and sizes
    return Draw(torch.Generator().manual_seed(start), (3, height, width), images, labels, weights, device)


def _check_batch(proxy: Proxy, images: Tensor | None, labels: Tensor | None) -> tuple[Tensor, Tensor]:
    if images is None or labels is None:
        raise ProxyError(f"{proxy.name} needs real images and their classes: give images=(B, 3, H, W) and labels=(B)")
    if images.ndim != 4 or labels.shape != images.shape[:1] or not len(images):
        shapes = f"{tuple(images.shape)} and {tuple(labels.shape)}"
        raise ProxyError(f"images and labels are {shapes}; they must be (B, 3, H, W) and (B)")
    if labels.is_floating_point() or labels.min() < 0:
        raise ProxyError("labels must be the numbers of the classes, from 0 on")
    # a copy: a network may work on its input in place
    return images.detach().to("cpu", proxy.dtype, copy=True), labels.cpu().long()


@contextmanager
def _quiet() -> Iterator[None]:
    """What is global stays as it was: threads, random state, the fused attention that bypasses modules.

    A GPU rounds the inputs of convolutions to 10 bits (TF32) if it may, and the scores would not be those of the CPU.
    On one thread sums come out the same to the last bit whatever the number of cores, and parallel searches do not
    collide. Kept weights must not come from an inference mode, which would make them useless after it.
    """
    threads, fused = torch.get_num_threads(), torch.backends.mha.get_fastpath_enabled()
    torch.set_num_threads(1)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        # of the ways to compute attention, only the plain one can be differentiated twice, as GraSP does
        with (
            torch.random.fork_rng(devices=[]),
            sdpa_kernel(SDPBackend.MATH),
            torch.inference_mode(False),
            cudnn.flags(enabled=cudnn.enabled, allow_tf32=False),
        ):
            yield
    finally:
        torch.set_num_threads(threads)
        torch.backends.mha.set_fastpath_enabled(fused)


def _network(proxy: Proxy, subject: Subject, img_size: tuple[int, int]) -> nn.Module:
    """A network of its own to measure on, built or copied without touching any random state."""
    if isinstance(subject, Topology):
        raise ProxyError(f"{proxy.name} needs a network; a topology is enough for sed only")
    if isinstance(subject, nn.Module):
        return copy.deepcopy(subject).to("cpu", proxy.dtype).requires_grad_()
    with torch.device("meta"):  # no memory, no initialisation: the proxy draws the weights
        network = ESFormer(subject, img_size=img_size).to(proxy.dtype)
    network.to_empty(device="cpu")
    for module in network.modules():
        if isinstance(module, Attention2d | Attention2dDownsample):
            module.init_non_persistent_buffers()  # where each position finds its attention bias
    return network
