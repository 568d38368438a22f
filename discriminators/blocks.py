"""Convolution blocks of the discriminators; module names are those of the published checkpoints."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEAKY_SLOPE = 0.2


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

    def forward(self, x: Tensor) -> Tensor:
        """Features of x (B, in_channels, H, W).

        A convolution is linear in its channels, and what the coordinates add is the same for all
        images: it is computed once, which is faster than two more channels in every image.
        """
        _, _, height, width = x.shape
        rows = torch.linspace(-1, 1, height, device=x.device, dtype=x.dtype)
        columns = torch.linspace(-1, 1, width, device=x.device, dtype=x.dtype)
        coordinates = torch.stack(
            [rows[:, None].expand(height, width), columns.expand(height, width)]
        )
        of_x, of_coordinates = self.conv.weight.split([x.shape[1], 2], dim=1)
        stride, padding = self.conv.stride, self.conv.padding
        everywhere = F.conv2d(coordinates[None], of_coordinates, self.conv.bias, stride, padding)
        return F.conv2d(x, of_x, None, stride, padding) + everywhere


class AdapterBlock(nn.Module):
    """An image (B, 3, H, W) to features (B, channels, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Conv2d(3, channels, 1), nn.LeakyReLU(LEAKY_SLOPE))

    def forward(self, images: Tensor) -> Tensor:
        """Features of images."""
        features: Tensor = self.model(images)
        return features


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

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, out_channels, H / 2, W / 2) of x (B, in_channels, H, W)."""
        y: Tensor = self.network(x)
        if not self.is_strided:
            y, x = F.avg_pool2d(y, 2), F.avg_pool2d(x, 2)
        if self.proj is not None:
            x = self.proj(x)
        return (y + x) / math.sqrt(2)
