"""What the networks of several benchmarks are made of, and how many parameters it has."""

from torch import Tensor, nn


def conv_bn_params(in_chs: int, out_chs: int, kernel: int = 1, groups: int = 1) -> int:
    """Parameters of a convolution without bias and the batch norm that follows it."""
    return in_chs // groups * out_chs * kernel**2 + 2 * out_chs


def relu_conv_bn(in_chs: int, out_chs: int, kernel: int = 1, stride: int = 1) -> nn.Sequential:
    """The order of NATS-Bench and DARTS: the activation comes first."""
    conv = nn.Conv2d(in_chs, out_chs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(nn.ReLU(), conv, nn.BatchNorm2d(out_chs))


class Zero(nn.Module):
    """The operation `none`: its zeros are a product, so that gradients still find their way (and are zero)."""

    def __init__(self, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, :: self.stride, :: self.stride] * 0.0
