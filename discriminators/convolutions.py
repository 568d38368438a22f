"""Convolutions, and what each is for one input: a kernel, and a constant that it adds.

Legend: B images, C channels, H x W pixels.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Kernel(NamedTuple):
    """A convolution by weight (C, in, k, k), and what it adds: (1, C, 1, 1) or (1, C, H, W)."""

    weight: Tensor
    constant: Tensor
    stride: int
    padding: int


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
        of_x, of_coordinates = self.conv.weight.split([x.shape[1], 2], dim=1)
        stride, padding = _geometry(self.conv)
        everywhere = F.conv2d(coordinates[None], of_coordinates, self.conv.bias, stride, padding)
        return Kernel(of_x, everywhere, stride, padding)

    def forward(self, x: Tensor) -> Tensor:
        """Features of x (B, in_channels, H, W)."""
        weight, everywhere, stride, padding = self.kernel(x)
        return F.conv2d(x, weight, None, stride, padding) + everywhere


def kernel_of(convolution: nn.Module, x: Tensor) -> Kernel:
    """What a convolution, with coordinates or without, does to x (B, in, H, W)."""
    if isinstance(convolution, CoordConv):
        return convolution.kernel(x)
    assert isinstance(convolution, nn.Conv2d)  # for the type checker
    assert convolution.bias is not None
    bias = convolution.bias[None, :, None, None]
    return Kernel(convolution.weight, bias, *_geometry(convolution))


def _geometry(convolution: nn.Conv2d) -> tuple[int, int]:
    """Stride and padding, which are equal in both directions."""
    assert isinstance(convolution.padding, tuple)  # for the type checker
    return convolution.stride[0], convolution.padding[0]
