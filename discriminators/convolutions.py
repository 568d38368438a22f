"""Convolutions, each also as a kernel plus a constant that does not depend on the image.

Legend: B images, C channels, H x W pixels.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Kernel(NamedTuple):
    """A convolution with weight (C, in, k, k) plus a constant (1, C, 1, 1) or (1, C, H, W)."""

    weight: Tensor
    constant: Tensor
    stride: int
    padding: int


class CoordConv(nn.Module):
    """A convolution with two more input channels: each pixel's row and column, from -1 to 1.

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
        """Return an equivalent kernel that takes x (B, in_channels, H, W) without coordinates.

        A convolution is linear in its channels, so the coordinates add the same constant to all
        images: computing it once is faster than two more channels in every image.
        """
        _, _, height, width = x.shape
        axes = {
            side: torch.linspace(-1, 1, side, device=x.device, dtype=x.dtype)
            for side in {height, width}
        }
        coordinates = torch.stack(
            [axes[height][:, None].expand(height, width), axes[width].expand(height, width)]
        )
        # To the type of x before the split: autocast would convert both parts.
        of_x, of_coordinates = self.conv.weight.to(x.dtype).split([x.shape[1], 2], dim=1)
        stride, padding = _geometry(self.conv)
        everywhere = F.conv2d(coordinates[None], of_coordinates, self.conv.bias, stride, padding)
        return Kernel(of_x, everywhere, stride, padding)

    def forward(self, x: Tensor) -> Tensor:
        """Return features (B, out_channels, H', W') of x (B, in_channels, H, W)."""
        weight, everywhere, stride, padding = self.kernel(x)
        return F.conv2d(x, weight, None, stride, padding) + everywhere


def kernel_of(convolution: nn.Module, x: Tensor) -> Kernel:
    """Return the kernel by which a CoordConv or Conv2d acts on x (B, in, H, W)."""
    if isinstance(convolution, CoordConv):
        return convolution.kernel(x)
    assert isinstance(convolution, nn.Conv2d)  # for the type checker
    assert convolution.bias is not None
    bias = convolution.bias[None, :, None, None]
    return Kernel(convolution.weight, bias, *_geometry(convolution))


def _geometry(convolution: nn.Conv2d) -> tuple[int, int]:
    """Return stride and padding, which are equal in both directions."""
    assert isinstance(convolution.padding, tuple)  # for the type checker
    return convolution.stride[0], convolution.padding[0]
