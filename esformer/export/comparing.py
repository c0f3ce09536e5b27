"""What every export has in common: the images that it is compared on, and how far its outputs may be from PyTorch's."""

import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from esformer.errors import ESFormerError

Computes = Callable[[Tensor], Tensor]
"""Images, B, C, H, W -> outputs, B, classes."""
About = Mapping[str, Any]
"""What `Checkpoint.describe` gives."""

BATCHES = (1, 5)
"""Numbers of images that outputs are compared on; a file is made with another one."""
TOLERANCE = 2e-5
"""How far outputs may be apart, as a share of the largest. Float32 sums in another order were at most 8e-7 apart (S0,
S0-extended and S2; random, disturbed and trained weights; 32 to 224 pixels). A small mistake, GELU by its usual
approximation, made 2e-5 to 1e-4; another epsilon of the norms (1e-3) 1e-3 and more."""


class ExportError(ESFormerError):
    """An export that cannot be; says what is in the way."""


@dataclass(frozen=True)
class Difference:
    """How far apart the outputs of two networks are on the same images.

    Args:
        largest: the largest absolute difference.
        scale: the largest absolute output.
    """

    largest: float
    scale: float

    def check(self) -> None:
        """Refuse more than float32 makes of another order of the same sums.

        Raises:
            ExportError: they are farther apart, or not finite.
        """
        if not self.scale < math.inf:  # nor where it is no number
            raise ExportError("the network's outputs are not finite: its weights are bad")
        if not self.largest <= TOLERANCE * self.scale:
            raise ExportError(f"the outputs of what was written differ from PyTorch's by {self}; it is not kept")

    def __str__(self) -> str:
        return f"{self.largest:.1e} where outputs reach {self.scale:.3g}"


@torch.no_grad()
def compare(network: nn.Module, other: Computes) -> Difference:
    """The difference on random images of the network's size, in batches of 1 and 5."""
    generator, pairs = torch.Generator().manual_seed(0), []
    for batch in BATCHES:
        images = images_for(network, batch, generator)
        pairs.append((network(images), other(images)))
    wanted, found = (torch.cat(outputs).double() for outputs in zip(*pairs, strict=True))
    return Difference((wanted - found).abs().max().item(), wanted.abs().max().item())


def images_for(network: nn.Module, batch: int, generator: torch.Generator | None = None) -> Tensor:
    """Normal random numbers in the shape of so many of a network's images: B, C, H, W."""
    esformer: Any = network
    return torch.randn(batch, esformer.in_chans, *esformer.img_size, generator=generator)


def program_of(network: nn.Module, any_number: bool = True) -> ExportedProgram:
    """A network as PyTorch's own graph.

    Args:
        network: in evaluation mode.
        any_number: of images, not one at a time.
    """
    shapes = ({0: Dim("batch", min=1)},) if any_number else None
    program = torch.export.export(network, (images_for(network, 2 if any_number else 1),), dynamic_shapes=shapes)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # which names the folders of whoever exports
    return program


@contextmanager
def hushed(*names: str) -> Iterator[None]:
    """Without the warnings and progress of a library, which are for who writes networks, not for who exports them."""
    logs = [logging.getLogger(name) for name in names]
    before = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.CRITICAL)
    try:
        with ExitStack() as stack:
            stack.enter_context(warnings.catch_warnings(action="ignore"))
            stack.enter_context(redirect_stdout(StringIO()))
            stack.enter_context(redirect_stderr(StringIO()))
            yield
    finally:
        for log, level in zip(logs, before, strict=True):
            log.setLevel(level)
