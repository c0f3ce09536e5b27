"""Small networks of many kinds, and batches for them."""

import random

import timm
import torch
from torch import nn

from esformer.model.esformer import ESFormer
from esformer.space import SearchSpace

SIZE, CLASSES = 32, 3


class OneConv(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 3), nn.ReLU())


class TwoLayers(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.GELU(), nn.Conv2d(4, 5, 1), nn.BatchNorm2d(5), nn.GELU()
        )


def classifier(*layers, channels=4):
    """A network whose logits are linear in the mean over positions of what the layers give."""
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES))


def plain(act=nn.ReLU, **kwargs):
    return classifier(nn.Conv2d(3, 4, 3), act(**kwargs))


def pooled(act=nn.GELU, **kwargs):
    return classifier(
        nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), act(**kwargs), nn.MaxPool2d(3, 2),
        nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), act(**kwargs), channels=6,
    )  # fmt: skip


def gated():
    return classifier(nn.Conv2d(3, 8, 3), nn.GLU(dim=1), nn.Conv2d(4, 4, 1), nn.GELU())


def grouped():
    """Norms whose statistics are of one image."""
    return classifier(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.SiLU(), nn.Conv2d(4, 4, 1), nn.InstanceNorm2d(4))


class Attention(nn.Module):
    """With the fused attention of PyTorch, which passes by modules in evaluation."""

    def __init__(self):
        super().__init__()
        self.embed, self.act = nn.Conv2d(3, 8, 8, 8), nn.GELU()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, dropout=0.1)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)
        return self.head(self.act(self.attention(x, x, x)[0]).mean(1))


class Encoder(nn.Module):
    """PyTorch's Transformer, with its activation as a module or as a function."""

    def __init__(self, act=None):
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 8, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, activation=act or nn.GELU(), batch_first=True)
        self.body = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x):
        return self.head(self.body(self.embed(x).flatten(2).transpose(1, 2)).mean(1))


class Small(ESFormer):
    def __init__(self):
        super().__init__(SearchSpace.for_size("S0").sample(random.Random(1)), num_classes=CLASSES, img_size=SIZE)


class Times(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor


def of_timm(name, **kwargs):
    return lambda: timm.create_model(name, num_classes=CLASSES, **kwargs)


NETWORKS = {
    "plain": plain,
    "pooled": pooled,
    "gated": gated,
    "grouped": grouped,
    "attention": Attention,
    "encoder": Encoder,
    "esformer": Small,
    "resnet": of_timm("resnet10t"),
    "convnext": of_timm("convnext_atto"),
    "vit": of_timm("vit_tiny_patch16_224", img_size=SIZE, depth=2),
}


def batch(count=4, size=SIZE, seed=0, classes=CLASSES):
    """Random images and labels, for those proxies that need some."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, size, size, generator=generator)
    return {"images": images, "labels": torch.arange(count) % classes}


def scrambled(network):
    """The same architecture with other values for all that may not matter."""
    with torch.no_grad():
        for tensor in (*network.parameters(), *network.buffers()):
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 3)
    return network.double()
