"""Apply a discriminator's layers normally, or with LeakyReLU slopes frozen at a recorded input.

A discriminator consists of convolutions and LeakyReLU, so around each image it is an affine map,
whose slopes follow from the signs of the rectifiers' inputs. Its gradient is that map's, and so is
the gradient of a penalty on it: neither needs a second derivative of the convolutions.

Legend: B images, C channels, H x W pixels.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from discriminators.convolutions import kernel_of

LEAKY_SLOPE = 0.2


class NormalLayers:
    """Applies layers normally."""

    def convolve(self, convolution: nn.Module, x: Tensor) -> Tensor:
        """Return features (B, C, H, W) of x (B, in, ...)."""
        features: Tensor = convolution(x)
        return features

    def rectify(self, x: Tensor) -> Tensor:
        """Return the LeakyReLU of x."""
        return F.leaky_relu(x, LEAKY_SLOPE)

    def rectified(self, convolution: nn.Module, x: Tensor) -> Tensor:
        """Return the LeakyReLU of the features (B, C, H, W) of x (B, in, ...)."""
        return self.rectify(self.convolve(convolution, x))

    def joined(
        self, convolution: nn.Module, x: Tensor, beside: nn.Conv2d, shortcut: Tensor
    ) -> Tensor:
        """Return rectified(convolution, x) plus the features of a shortcut, divided by sqrt(2).

        shortcut is what with_half returned beside x.
        """
        features = self.rectified(convolution, x)
        return (features + self.convolve(beside, shortcut[:, :, ::2, ::2])) / math.sqrt(2)

    def with_half(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return x (B, C, H, W), and what joined takes as shortcut: here x, which it halves later.

        The gradient of the halves is then added last, in the memory format of the first.
        """
        return x, x


NORMAL_LAYERS = NormalLayers()


class RecordedLayers(NormalLayers):
    """Applies layers normally and records numbers with the signs of the rectifiers' inputs."""

    def __init__(self) -> None:
        self.signs: list[Tensor] = []

    def rectify(self, x: Tensor) -> Tensor:
        """Record x and return its LeakyReLU."""
        self.signs.append(x.detach())
        return super().rectify(x)


class Affine(NormalLayers):
    """Applies layers with the LeakyReLU slopes of a recorded pass to the first images.

    Args:
        watched: the recorded pass; the images after its number get normal LeakyReLU.
        shares: (B,) factors on the layers' constants (biases and coordinates), one per image; 1
            for images with normal layers.
    """

    def __init__(self, watched: RecordedLayers, shares: Tensor) -> None:
        self.signs = iter(watched.signs)
        self.shares = shares[:, None, None, None]

    def convolve(self, convolution: nn.Module, x: Tensor) -> Tensor:
        """Return features (B, C, H, W) of x (B, in, ...), constants multiplied by shares."""
        weight, constant, stride, padding = kernel_of(convolution, x)
        linear = F.conv2d(x, weight, None, stride, padding)
        self.shares = self.shares.to(linear.dtype)  # autocast's, after the first layer
        return torch.addcmul(linear, self.shares, constant.to(linear.dtype))

    def rectify(self, x: Tensor) -> Tensor:
        """Return x times the recorded slopes; the LeakyReLU of x for the other images."""
        first = next(self.signs)
        signs = torch.cat([first, x.detach()[len(first) :]])
        scaled: Tensor = torch.ops.aten.leaky_relu_backward(x, signs, LEAKY_SLOPE, False)
        return scaled
