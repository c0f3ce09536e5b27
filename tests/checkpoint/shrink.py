"""Make a checkpoint small enough to be kept: `python shrink.py last.ckpt stored/format-2.ckpt.xz`.

All stays as it was written but the numbers in its tensors: tensor number i holds i everywhere, and they share one
memory.
"""

import itertools
import lzma
import sys

import torch


def shrink(content, numbers, memory):
    if isinstance(content, torch.Tensor):
        return memory[next(numbers)].to(content.dtype).expand(content.shape) if content.is_floating_point() else content
    if isinstance(content, dict):
        return type(content)((key, shrink(value, numbers, memory)) for key, value in content.items())
    if isinstance(content, list | tuple):
        return type(content)(shrink(value, numbers, memory) for value in content)
    return content


if __name__ == "__main__":
    content = torch.load(sys.argv[1], weights_only=True)
    with lzma.open(sys.argv[2], "wb") as file:
        torch.save(shrink(content, itertools.count(), torch.arange(10_000.0)), file)
