"""Compare the kernels of the discriminator's layers with their reference, before their use."""

import functools

import torch
from torch import Tensor

from discriminators.blocks import ResidualBlock
from discriminators.linearized import NormalLayers
from siren.fused import trial
from training import fused_layers

IMAGES, CHANNELS, SIDE = 5, 8, 12


@functools.cache
def fault(device: torch.device, dtype: torch.dtype) -> str:
    """Return what is wrong with the kernels on a device, and warn of it; empty if nothing.

    dtype: of the convolutions, by autocast.
    """
    return trial.fault(
        device,
        dtype,
        "the discriminator's layers are computed",
        lambda: _results(device, dtype, fused_layers.FUSED.normal),
        lambda: _results(device, dtype, fused_layers.PLAIN.normal),
    )


def _results(device: torch.device, dtype: torch.dtype, layers: NormalLayers) -> list[Tensor]:
    """Return the features of a block, and the gradients of images and parameters."""
    rng = torch.Generator().manual_seed(0)
    with torch.device("meta"):  # draws nothing
        block = ResidualBlock(CHANNELS, 2 * CHANNELS, has_coordinates=True, is_strided=True)
    block.to_empty(device=device)
    for parameter in block.parameters():
        parameter.data.copy_(trial.uniform(rng, 0.3, *parameter.shape))
    images = trial.uniform(rng, 1, IMAGES, CHANNELS, SIDE, SIDE)
    upstream = trial.uniform(rng, 1, IMAGES, 2 * CHANNELS, SIDE // 2, SIDE // 2).to(device)
    images = images.to(device, memory_format=torch.channels_last).requires_grad_()
    with torch.autocast(device.type, dtype=dtype):
        features = block(images, layers)
    gradients = torch.autograd.grad((features * upstream).sum(), [images, *block.parameters()])
    return [features, *gradients]
