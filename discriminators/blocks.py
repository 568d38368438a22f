"""Convolution blocks of the discriminators; module names are those of the published checkpoints."""

import math

import torch.nn.functional as F
from torch import Tensor, nn

from discriminators.convolutions import CoordConv
from discriminators.linearized import LEAKY_SLOPE, NORMAL_LAYERS, NormalLayers


class AdapterBlock(nn.Module):
    """A 1x1 convolution that maps images (B, 3, H, W) to features (B, channels, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Conv2d(3, channels, 1), nn.LeakyReLU(LEAKY_SLOPE))

    def forward(self, images: Tensor, layers: NormalLayers = NORMAL_LAYERS) -> Tensor:
        """Return features of images; layers applies the convolution and the rectifier."""
        return layers.rectified(self.model[0], images)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions plus a shortcut, divided by sqrt(2); halves the resolution.

    has_coordinates: the convolutions are CoordConv. is_strided: halve by stride 2 in the second
    convolution and the shortcut (kaiming initialisation), not by average pooling (PyTorch's default
    initialisation).
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
            self.proj = nn.Conv2d(in_channels, out_channels, 1)
        if is_strided:
            for module in self.network.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight, a=LEAKY_SLOPE)

    def forward(self, x: Tensor, layers: NormalLayers = NORMAL_LAYERS) -> Tensor:
        """Return features (B, out_channels, H / 2, W / 2) of x (B, in_channels, H, W).

        layers applies the convolutions and the rectifiers.
        """
        first, second = self.network[0], self.network[2]
        if self.is_strided:
            assert self.proj is not None  # for the type checker
            # Not the stride of proj: the gradient of a strided 1x1 convolution with fewer than 8
            # channels in channels_last writes outside of its buffer in oneDNN's AVX2 kernel
            # (PyTorch 2.13, jit_avx2_1x1_convolution_bwd_weights).
            x, halved = layers.with_half(x)
            y = layers.rectified(first, x)
            return layers.joined(second, y, self.proj, halved)
        y = layers.rectified(second, layers.rectified(first, x))
        y, x = F.avg_pool2d(y, 2), F.avg_pool2d(x, 2)
        if self.proj is not None:
            x = layers.convolve(self.proj, x)
        return (y + x) / math.sqrt(2)
