"""How a discriminator applies its layers: as they are, or as the affine map that they were.

A discriminator is made of convolutions and LeakyReLU, so around each image it is an affine map,
whose slopes are fixed by the signs of what enters the rectifiers. Its gradient is that map's, and
so is the gradient of a penalty on it: neither needs a second derivative of the convolutions.

Legend: B images, C channels, H x W pixels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from discriminators.convolutions import kernel_of

LEAKY_SLOPE = 0.2


class AsTheyAre:
    """The layers of a network as they are."""

    def convolve(self, convolution: nn.Module, x: Tensor) -> Tensor:
        """Features (B, C, H, W) of x (B, in, ...)."""
        features: Tensor = convolution(x)
        return features

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

    def convolve(self, convolution: nn.Module, x: Tensor) -> Tensor:
        """Features (B, C, H, W) of x (B, in, ...)."""
        weight, constant, stride, padding = kernel_of(convolution, x)
        linear = F.conv2d(x, weight, None, stride, padding)
        return torch.addcmul(linear, self.shares.to(linear.dtype), constant.to(linear.dtype))

    def rectify(self, x: Tensor) -> Tensor:
        """X, scaled where the rectifier scaled what was watched; LeakyReLU of the other images."""
        first = next(self.signs)
        signs = torch.cat([first, x.detach()[len(first) :]])
        scaled: Tensor = torch.ops.aten.leaky_relu_backward(x, signs, LEAKY_SLOPE, False)
        return scaled
