"""Render as the published code does, in a separate plain implementation for comparison.

It draws from PyTorch's own stream, in the published order, and blends with a running product of
transmittances. Everything is spelled out; nothing of the project is used.
"""

import math

import torch
from torch.nn import functional as F


def camera_to_world(pitch, yaw):
    """Return origins (B, 3), rotations (B, 3, 3) of cameras on the unit sphere that look at 0."""
    origin = torch.stack([pitch.sin() * yaw.cos(), pitch.cos(), pitch.sin() * yaw.sin()], dim=-1)
    forward = F.normalize(-origin, dim=-1)
    up = torch.tensor([0.0, 1.0, 0.0]).expand_as(forward)
    left = F.normalize(torch.linalg.cross(up, forward), dim=-1)
    up = F.normalize(torch.linalg.cross(forward, left), dim=-1)
    return origin, torch.stack([-left, up, -forward], dim=-1)


def blend(samples, depths, *, std, clamp, last_back, white_back):
    """Return colors (B, R, 3), depths (B, R), weights (B, R, S) of samples (B, R, S, 4)."""
    deltas = depths[:, :, 1:] - depths[:, :, :-1]
    deltas = torch.cat([deltas, torch.full_like(deltas[:, :, :1], 1e10)], dim=2)
    noise = torch.randn((*depths.shape, 1))[..., 0] * std
    density = {"relu": F.relu, "softplus": F.softplus}[clamp](samples[..., 3] + noise)
    alphas = 1 - torch.exp(-deltas * density)
    passing = torch.cat([torch.ones_like(alphas[:, :, :1]), 1 - alphas + 1e-10], dim=2)
    weights = alphas * torch.cumprod(passing, dim=2)[:, :, :-1]
    total = weights.sum(2)
    if last_back:
        weights = weights.clone()
        weights[:, :, -1] += 1 - total
    color = (weights[..., None] * samples[..., :3]).sum(2)
    if white_back:
        color = color + 1 - total[..., None]
    return color, (weights * depths).sum(2), weights


def finer(depths, weights, count):
    """Draw depths (B, R, count) in proportion to the weights of the coarse ones."""
    shape = depths.shape
    depths, weights = depths.reshape(-1, shape[2]), weights.reshape(-1, shape[2]) + 1e-5
    bins, weights = (depths[:, 1:] + depths[:, :-1]) / 2, weights[:, 1:-1] + 1e-5
    pdf = weights / weights.sum(-1, keepdim=True)
    cdf = torch.cat([torch.zeros_like(pdf[:, :1]), torch.cumsum(pdf, -1)], -1)
    u = torch.rand(len(depths), count)
    index = torch.searchsorted(cdf, u)
    low, high = (index - 1).clamp(min=0), index.clamp(max=weights.shape[1])
    mass = cdf.gather(1, high) - cdf.gather(1, low)
    mass[mass < 1e-5] = 1
    share = (u - cdf.gather(1, low)) / mass
    start, end = bins.gather(1, low), bins.gather(1, high)
    return (start + share * (end - start)).reshape(*shape[:2], count)


def render(siren, frequencies, phases, pitch, yaw, *, size, steps, fov, near, far, hierarchical,
           lock=False, **blending):  # fmt: skip
    """Return images (B, 3, size, size) in [-1, 1] and depths (B, size, size)."""
    count = len(frequencies)
    y, x = torch.meshgrid(torch.linspace(1, -1, size), torch.linspace(-1, 1, size), indexing="ij")
    z = torch.full_like(x, -1 / math.tan(math.radians(fov) / 2))
    pixels = F.normalize(torch.stack([x, y, z], -1).reshape(-1, 3), dim=-1)
    depths = torch.linspace(near, far, steps).expand(count, size * size, steps)
    spacing = depths[0, 0, 1] - depths[0, 0, 0]
    depths = depths + (torch.rand((*depths.shape, 1))[..., 0] - 0.5) * spacing
    origin, rotation = camera_to_world(pitch, yaw)
    directions = torch.einsum("bij,rj->bri", rotation, pixels)

    def query(at):
        points = origin[:, None, None] + directions[:, :, None] * at[..., None]
        seen = directions[:, :, None].expand_as(points)
        if lock:
            seen = torch.tensor([0.0, 0.0, -1.0]).expand_as(points)
        flat = siren(points.reshape(count, -1, 3), frequencies, phases, seen.reshape(count, -1, 3))
        return flat.reshape(*points.shape[:3], 4)

    samples = query(depths)
    if hierarchical:
        *_, weights = blend(samples, depths, **{**blending, "last_back": False})
        fine = finer(depths, weights.detach(), steps)  # no gradient through the places
        samples, depths = torch.cat([query(fine), samples], 2), torch.cat([fine, depths], 2)
        depths, order = depths.sort(2)
        samples = samples.gather(2, order[..., None].expand_as(samples))
    color, depth, _ = blend(samples, depths, **blending)
    image = color.reshape(count, size, size, 3).permute(0, 3, 1, 2) * 2 - 1
    return image, depth.reshape(count, size, size)
