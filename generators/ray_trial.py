"""Compare the kernels of importance sampling and compositing with their reference, before use."""

import functools

import torch
from torch import Tensor

from generators import fast_rays
from generators.volumetric_rendering import (
    RenderOptions,
    activated_density,
    composite,
    compositing_weights,
    importance_depths,
    merge,
)
from siren.fused import trial

IMAGES, RAYS, STEPS = 2, 70, 6  # the last program has fewer rays than the others
OPTIONS = RenderOptions(
    image_size=1, fov_degrees=12, near=0.8, far=1.2, num_steps=STEPS, background="white"
)


@functools.cache
def fault(device: torch.device) -> str:
    """Return what is wrong with the kernels on a device, and warn of it; empty if nothing."""
    return trial.fault(
        device,
        torch.float32,
        "rays are blended",
        lambda: _results(device, True),
        lambda: _results(device, False),
    )


def _results(device: torch.device, by_kernels: bool) -> list[Tensor]:
    """Return importance depths, pixels, and the gradients of two sets of samples."""
    rng = torch.Generator().manual_seed(0)
    depths, fine = (
        (1 + trial.uniform(rng, 0.2, IMAGES, RAYS, STEPS)).sort(-1).values.to(device)
        for _ in range(2)
    )
    samples = []
    for _ in range(2):
        drawn = torch.rand(IMAGES, RAYS, STEPS, 4, generator=rng)
        drawn[..., 3] = trial.uniform(rng, 20, IMAGES, RAYS, STEPS)
        samples.append(drawn.to(device).requires_grad_())
    first, second = samples
    upstream = trial.uniform(rng, 1, IMAGES, RAYS, 5).to(device)
    if by_kernels:
        found = fast_rays.importance_depths(
            first.detach(), depths, STEPS, OPTIONS, noise=None, quantiles=None, end=None
        )
        merged, order = torch.cat([depths, fine], dim=-1).sort(dim=-1)
        rgb, depth, opacity = fast_rays.composite(
            (first, second), order, merged, OPTIONS, noise=None, end=None
        )
    else:
        density = activated_density(first.detach(), OPTIONS, rng=None)
        weights = compositing_weights(density, depths)
        found = importance_depths(depths, weights, STEPS, quantiles=None)
        merged, both = merge((depths, first), (fine, second))
        rgb, depth, opacity = composite(both, merged, OPTIONS, rng=None)
    pixels = torch.cat([rgb, depth[..., None], opacity[..., None]], dim=-1)
    gradients = torch.autograd.grad((pixels * upstream).sum(), samples)
    return [found - 1, pixels, *gradients]
