"""A small network that holds one layer of an ESFormer, or some of it in a row: what a table of latencies measures."""

from timm.models import efficientformer_v2 as timm_v2
from torch import Tensor, nn

from esformer.model.esformer import Downsample, ESFormerBlock
from esformer.model.layers import Layer


class Probe(nn.Module):
    """Layers of one kind in a row: B, C, H, W -> what they give.

    Args:
        layer: what it holds.
        times: how many.
    """

    def __init__(self, layer: Layer, times: int = 1) -> None:
        super().__init__()
        self.in_chans, self.img_size = layer.chs, (layer.pixels, layer.pixels)
        self.layers = nn.Sequential(*(self._made(layer) for _ in range(times)))

    def _made(self, layer: Layer) -> nn.Module:
        if layer.part == "stem":
            return timm_v2.Stem4(layer.chs, layer.out, act_layer=nn.GELU)
        if layer.part == "classifier":
            return Classifier(layer.chs, layer.out)
        if layer.block is None:
            return Downsample(layer.chs, layer.out, self.img_size, "attention" in layer.part, nn.GELU)
        stride = 2 if "strided" in layer.part else None
        return ESFormerBlock(layer.block, layer.chs, self.img_size, stride, 0.0, 1e-5, nn.GELU)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Classifier(nn.Module):
    """What stands behind the last block: B, C, H, W -> B, classes."""

    def __init__(self, chs: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(chs)
        self.head = nn.Linear(chs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(x).mean(dim=(2, 3)))
