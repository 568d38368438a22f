"""How a discriminator applies its layers: as they are, or as the affine map that they were.

A discriminator is made of convolutions and LeakyReLU, so around each image it is an affine map,
whose slopes are fixed by the signs of what enters the rectifiers. Its gradient is that map's, and
so is the gradient of a penalty on it: neither needs a second derivative of the convolutions.

Legend: B images, C channels, H x W pixels.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEAKY_SLOPE = 0.2


class Kernel(NamedTuple):
    """A convolution: weight (C, in, k, k), and what it adds, (C,) or a map (1, C, H, W)."""

    weight: Tensor
    constant: Tensor
    stride: int
    padding: int

    @classmethod
    def of(cls, conv: nn.Conv2d) -> "Kernel":
        """That of a module with a bias, strides and paddings equal in both directions."""
        assert conv.bias is not None  # for the type checker
        assert isinstance(conv.padding, tuple)
        return cls(conv.weight, conv.bias, conv.stride[0], conv.padding[0])


class AsTheyAre:
    """The layers of a network as they are."""

    def convolve(self, x: Tensor, kernel: Kernel) -> Tensor:
        """Features (B, C, H, W) of x (B, in, ...)."""
        weight, constant, stride, padding = kernel
        if constant.ndim == 1:
            return F.conv2d(x, weight, constant, stride, padding)
        return F.conv2d(x, weight, None, stride, padding) + constant

    def rectify(self, x: Tensor) -> Tensor:
        """LeakyReLU."""
        return F.leaky_relu(x, LEAKY_SLOPE)


AS_THEY_ARE = AsTheyAre()


class Watched(AsTheyAre):
    """The layers as they are; keeps what enters the rectifiers, in their order."""

    def __init__(self) -> None:
        self.rectified: list[Tensor] = []

    def rectify(self, x: Tensor) -> Tensor:
        """LeakyReLU."""
        self.rectified.append(x.detach())
        return super().rectify(x)


class Affine(AsTheyAre):
    """For the first images the affine map that the layers were for watched ones, else the layers.

    Args:
        watched: the pass of the network whose slopes the first images take.
        shares: (B,) of all images: each is added shares times what the layers add; 1 where the
            layers act as they are.
    """

    def __init__(self, watched: Watched, shares: Tensor) -> None:
        self.signs = iter(watched.rectified)
        self.shares = shares[:, None, None, None]

    def convolve(self, x: Tensor, kernel: Kernel) -> Tensor:
        """Features (B, C, H, W) of x (B, in, ...)."""
        weight, constant, stride, padding = kernel
        linear = F.conv2d(x, weight, None, stride, padding)
        constant = constant.to(linear.dtype)
        if constant.ndim == 1:
            constant = constant[None, :, None, None]
        return torch.addcmul(linear, self.shares.to(linear.dtype), constant)

    def rectify(self, x: Tensor) -> Tensor:
        """X, scaled where the rectifier scaled what was watched; LeakyReLU of the other images."""
        first = next(self.signs)
        signs = torch.cat([first, x.detach()[len(first) :]])
        scaled: Tensor = torch.ops.aten.leaky_relu_backward(x, signs, LEAKY_SLOPE, False)
        return scaled
