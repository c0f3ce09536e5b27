"""Make a checkpoint small enough to be kept: `python shrink.py last.ckpt stored/format-2.ckpt.xz`.

All stays as it was written but the numbers in its tensors: tensor number i holds i everywhere.
"""

import itertools
import lzma
import sys

import torch


def shrink(content, numbers):
    if isinstance(content, torch.Tensor):
        return torch.full_like(content, next(numbers)) if content.is_floating_point() else content
    if isinstance(content, dict):
        return type(content)((key, shrink(value, numbers)) for key, value in content.items())
    if isinstance(content, list | tuple):
        return type(content)(shrink(value, numbers) for value in content)
    return content


if __name__ == "__main__":
    content = torch.load(sys.argv[1], weights_only=True)
    with lzma.open(sys.argv[2], "wb") as file:
        torch.save(shrink(content, itertools.count()), file)
