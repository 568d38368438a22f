"""Convolution blocks of the discriminators; module names are those of the published checkpoints."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from discriminators.linearized import AS_THEY_ARE, LEAKY_SLOPE, AsTheyAre, Kernel


class CoordConv(nn.Module):
    """A convolution that also sees where each pixel is: row, then column, each from -1 to 1.

    Source: CoordConv (Liu et al. 2018). The order, row before column, is that of the checkpoints.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels + 2, out_channels, kernel_size, stride=stride, padding=kernel_size // 2
        )

    def kernel(self, x: Tensor) -> Kernel:
        """The convolution as one of x (B, in_channels, H, W) alone.

        A convolution is linear in its channels, and what the coordinates add is the same for all
        images: it is computed once, which is faster than two more channels in every image.
        """
        _, _, height, width = x.shape
        rows = torch.linspace(-1, 1, height, device=x.device, dtype=x.dtype)
        columns = torch.linspace(-1, 1, width, device=x.device, dtype=x.dtype)
        coordinates = torch.stack(
            [rows[:, None].expand(height, width), columns.expand(height, width)]
        )
        whole = Kernel.of(self.conv)
        of_x, of_coordinates = whole.weight.split([x.shape[1], 2], dim=1)
        everywhere = AS_THEY_ARE.convolve(coordinates[None], whole._replace(weight=of_coordinates))
        return whole._replace(weight=of_x, constant=everywhere)

    def forward(self, x: Tensor) -> Tensor:
        """Features of x (B, in_channels, H, W)."""
        return AS_THEY_ARE.convolve(x, self.kernel(x))


def kernel_of(layer: nn.Module, x: Tensor) -> Kernel:
    """The convolution of a module for the input x."""
    if isinstance(layer, CoordConv):
        return layer.kernel(x)
    assert isinstance(layer, nn.Conv2d)  # for the type checker
    return Kernel.of(layer)


class AdapterBlock(nn.Module):
    """An image (B, 3, H, W) to features (B, channels, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Conv2d(3, channels, 1), nn.LeakyReLU(LEAKY_SLOPE))

    def forward(self, images: Tensor, layers: AsTheyAre = AS_THEY_ARE) -> Tensor:
        """Features of images; layers says how convolution and rectifier act."""
        return layers.rectify(layers.convolve(images, kernel_of(self.model[0], images)))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, at half the resolution; the sum is over sqrt(2).

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        has_coordinates: whether the convolutions are CoordConv.
        is_strided: True halves by stride 2 in the second convolution and the shortcut (kaiming
            normal start), False by average pooling (PyTorch's own start).
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, has_coordinates: bool, is_strided: bool
    ) -> None:
        super().__init__()
        stride = 2 if is_strided else 1
        if has_coordinates:
            first: nn.Module = CoordConv(in_channels, out_channels, 3)
            second: nn.Module = CoordConv(out_channels, out_channels, 3, stride=stride)
        else:
            first = nn.Conv2d(in_channels, out_channels, 3, padding=1)
            second = nn.Conv2d(out_channels, out_channels, 3, stride=stride, padding=1)
        self.network = nn.Sequential(
            first, nn.LeakyReLU(LEAKY_SLOPE), second, nn.LeakyReLU(LEAKY_SLOPE)
        )
        self.is_strided = is_strided
        self.proj: nn.Conv2d | None = None
        if is_strided or in_channels != out_channels:
            self.proj = nn.Conv2d(in_channels, out_channels, 1, stride=stride)
        if is_strided:
            for module in self.network.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight, a=LEAKY_SLOPE)

    def forward(self, x: Tensor, layers: AsTheyAre = AS_THEY_ARE) -> Tensor:
        """Features (B, out_channels, H / 2, W / 2) of x (B, in_channels, H, W).

        layers says how convolutions and rectifiers act.
        """
        y = x
        for convolution in (self.network[0], self.network[2]):  # a rectifier follows each
            y = layers.rectify(layers.convolve(y, kernel_of(convolution, y)))
        if not self.is_strided:
            y, x = F.avg_pool2d(y, 2), F.avg_pool2d(x, 2)
        if self.proj is not None:
            x = layers.convolve(x, Kernel.of(self.proj))
        return (y + x) / math.sqrt(2)
