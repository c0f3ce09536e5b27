"""Counts what a piece of code asks of a device: operators, and those that make the host wait for it."""

from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode

WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal"}
"""Operators whose result the host needs before it goes on."""


class Operators(TorchDispatchMode):
    """Within, counts operators by name, without views, which launch nothing.

    A copy to the CPU waits for the device, too. On the CPU itself nothing waits, but the same operators are asked for,
    other than such copies; with fake CUDA tensors these are counted as well.
    """

    def __init__(self):
        super().__init__()
        self.counts, self.waits = Counter(), Counter()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = operator._schema.name.removeprefix("aten::")
        if not operator.is_view and name != "detach":
            self.counts[name] += 1
        masked = name in ("index", "index_put_") and any(i is not None and i.dtype == torch.bool for i in args[1])
        to_cpu = name in ("_to_copy", "copy_") and _leaves_the_device(name, args, kwargs)
        if name in WAITS or masked or to_cpu:
            self.waits[name] += 1
        return operator(*args, **kwargs)

    @property
    def total(self):
        return self.counts.total()


def _leaves_the_device(name, args, kwargs):
    source = args[1] if name == "copy_" else args[0]
    target = args[0].device if name == "copy_" else kwargs.get("device") or source.device
    return source.device.type != "cpu" and torch.device(target).type == "cpu"
