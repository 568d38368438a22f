"""Camera poses and the rays that leave the camera.

Conventions, used everywhere: y is up. Yaw turns from +x towards +z, pitch is measured from +y, both
in radians. The camera sits on the unit sphere and looks at the origin along its own -z axis.
Depth is the distance from the camera along the unit-length ray.

Legend: B images, R = H * W rays.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

POLE_MARGIN = 1e-5  # radians kept from the poles, where "right" is undefined
NEAREST = 1e-3  # scene units in front of the camera, within which points count as behind it
TRUNCATION = 2.0  # standard deviations at which "truncated_gaussian" is cut
NUM_FAMILIAR = 2000  # cameras of training, which other cameras are compared with
FAMILIAR = math.radians(8)  # largest angle between a camera and the nearest of these
CANDIDATES = 4  # normal numbers drawn for each angle of "truncated_gaussian", as published

PoseKind = Literal[
    "gaussian", "uniform", "hybrid", "truncated_gaussian", "spherical_uniform", "mean"
]
# Standard deviations of the kinds, in spreads.
DEVIATIONS: dict[PoseKind, float] = {
    "gaussian": 1.0,
    "uniform": 1 / math.sqrt(3),
    "hybrid": math.sqrt((1 + 4 / 3) / 2),
    "truncated_gaussian": 0.8796,  # sqrt(1 - 2 c phi(c) / (2 Phi(c) - 1)), c = TRUNCATION
    "spherical_uniform": 1 / math.sqrt(3),
    "mean": 0.0,
}


class Poses(NamedTuple):
    """Camera angles of B images, each (B,), radians."""

    pitch: Tensor
    yaw: Tensor


class Rays(NamedTuple):
    """Rays of B cameras; origins and unit-length directions, each (B, R, 3)."""

    origins: Tensor
    directions: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class PoseDistribution:
    """Distribution of the training cameras.

    kind "gaussian" reads the spreads as standard deviations, "truncated_gaussian" as well but cut
    at two of them, "uniform" as half-widths. "hybrid" draws once per batch whether the batch is
    uniform with doubled spreads or gaussian; the published code draws this from Python's own random
    numbers instead of the stream. "spherical_uniform" covers a band of the sphere
    evenly: yaw is uniform, and (pitch_mean +- pitch_spread) / pi is the range of v in
    pitch = arccos(1 - 2 v). "mean" is the means for every image, without a draw.
    All in radians.
    """

    kind: PoseKind
    yaw_mean: float
    yaw_spread: float
    pitch_mean: float
    pitch_spread: float

    def center(self) -> tuple[float, float]:
        """Return (pitch, yaw) in the middle of the distribution, radians."""
        if self.kind == "spherical_uniform":
            cosine = 1 - 2 * self.pitch_mean / math.pi
            return math.acos(min(1.0, max(-1.0, cosine))), self.yaw_mean
        return self.pitch_mean, self.yaw_mean

    def moments(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Return mean and standard deviation of pitch and of yaw, radians."""
        scale = DEVIATIONS[self.kind]
        pitch = (self.pitch_mean, scale * self.pitch_spread)
        if self.kind == "spherical_uniform":
            ends = torch.arange(-1, 1.0005, 0.001, dtype=torch.float64)
            angles = _on_sphere(self.pitch_mean + self.pitch_spread * ends)
            pitch = float(angles.mean()), float(angles.std(correction=0))
        return pitch, (self.yaw_mean, scale * self.yaw_spread)


def _on_sphere(pitch: Tensor) -> Tensor:
    """Return arccos(1 - 2 v) of pitch = pi v, which covers the sphere evenly for an even v."""
    return torch.arccos(1 - 2 * (pitch / math.pi).clamp(POLE_MARGIN, 1 - POLE_MARGIN))


def _deviations(kind: PoseKind, count: int, rng: torch.Generator) -> Tensor:
    """Draw (count,) deviations from the mean, in spreads."""
    if kind == "mean":
        return torch.zeros(count)
    if kind == "gaussian":
        return torch.randn(count, generator=rng)
    if kind == "truncated_gaussian":
        # The first of four normal numbers within +-TRUNCATION. If there is none (4 in a million),
        # the first is taken, as published.
        candidates = torch.randn(count, CANDIDATES, generator=rng)
        first_inside = (candidates.abs() < TRUNCATION).byte().argmax(dim=1, keepdim=True)
        return candidates.gather(1, first_inside)[:, 0]
    if kind not in ("uniform", "spherical_uniform"):
        raise ValueError(f"no draws of {kind!r} are known")
    return 2 * torch.rand(count, generator=rng) - 1


def sample_poses(distribution: PoseDistribution, count: int, *, rng: torch.Generator) -> Poses:
    """Draw camera angles of count images; yaw is drawn before pitch, as published.

    rng is a CPU stream, so that a seed gives the same poses on every device. Returns Poses of (B,)
    on the CPU, pitch in [POLE_MARGIN, pi - POLE_MARGIN].
    """
    kind, scale = distribution.kind, 1.0
    if kind == "hybrid":
        is_uniform = bool(torch.rand(1, generator=rng) < 0.5)
        kind, scale = ("uniform", 2.0) if is_uniform else ("gaussian", 1.0)
    draw = partial(_deviations, kind, count, rng)
    yaw = distribution.yaw_mean + scale * distribution.yaw_spread * draw()
    pitch = distribution.pitch_mean + scale * distribution.pitch_spread * draw()
    if kind == "spherical_uniform":
        pitch = _on_sphere(pitch)
    return Poses(pitch=pitch.clamp(POLE_MARGIN, math.pi - POLE_MARGIN), yaw=yaw)


def familiar_poses(distribution: PoseDistribution) -> Poses:
    """Return NUM_FAMILIAR cameras of training on the CPU, always the same ones."""
    return sample_poses(distribution, NUM_FAMILIAR, rng=torch.Generator().manual_seed(0))


def angles_to_nearest(known: Poses, poses: Poses) -> Tensor:
    """Return the angles (B,) between the directions of B poses and of the nearest known ones."""
    cosines = camera_origins(poses) @ camera_origins(known).to(poses.yaw).T
    return cosines.amax(1).clamp(-1, 1).acos()


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a CPU tensor to device from pinned memory, which does not wait for queued work."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def camera_origins(poses: Poses) -> Tensor:
    """Return the positions (B, 3) of the cameras on the unit sphere."""
    pitch, yaw = poses
    return torch.stack([pitch.sin() * yaw.cos(), pitch.cos(), pitch.sin() * yaw.sin()], dim=-1)


def camera_rotations(poses: Poses) -> Tensor:
    """Return rotations (B, 3, 3) from camera to world, columns [right, up, -forward]."""
    forward = F.normalize(-camera_origins(poses), dim=-1)
    world_up = torch.zeros_like(forward)
    world_up[..., 1] = 1
    right = F.normalize(torch.linalg.cross(forward, world_up), dim=-1)
    up = F.normalize(torch.linalg.cross(right, forward), dim=-1)
    return torch.stack([right, up, -forward], dim=-1)


def project(points: Tensor, poses: Poses, fov_degrees: float) -> tuple[Tensor, Tensor]:
    """Project points (B, ..., 3) into cameras at poses.

    Returns places (B, ..., 2) in the image, x to the right and y downwards, -1 and 1 at the centers
    of the outermost pixels; and distances (B, ...) from the camera. Points behind the camera get a
    place outside of the image and distance inf.
    """
    origins = camera_origins(poses).view(-1, *[1] * (points.dim() - 2), 3)
    offsets = points - origins
    # Not a matrix product, which CUDA may round to TF32.
    axes = camera_rotations(poses).unflatten(0, (-1, *[1] * (points.dim() - 2)))
    right, up, back = (offsets[..., None] * axes).sum(-2).unbind(-1)
    is_ahead = -back > NEAREST
    scale = 1 / (math.tan(math.radians(fov_degrees) / 2) * (-back).clamp(min=NEAREST))
    places = torch.stack([right * scale, -up * scale], dim=-1)
    places = torch.where(is_ahead[..., None], places, 2.0)
    return places, offsets.norm(dim=-1).masked_fill(~is_ahead, torch.inf)


def camera_directions(
    shape: tuple[int, int],
    fov_degrees: float | Tensor,
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    """Return unit-length ray directions of a picture in camera space, row by row from the top.

    They are (R, 3) for one angle of view and (B, R, 3) for a tensor of them. shape is (H, W). The
    angle of view is that of the shorter side, and the centers of the outermost pixels lie on its
    edges, as published; the longer side sees more.
    """
    unit = max(1, min(shape) - 1)  # pixel spacings across the shorter side
    y, x = (
        torch.linspace(-reach, reach, count, device=device, dtype=dtype)
        for count, reach in ((count, max(1, count - 1) / unit) for count in shape)
    )
    y, x = (axis.flatten() for axis in torch.meshgrid(y.flip(0), x, indexing="ij"))
    if isinstance(fov_degrees, Tensor):
        z = (-1 / torch.tan(torch.deg2rad(fov_degrees.to(x)) / 2))[:, None].expand(-1, len(x))
    else:
        z = torch.full_like(x, -1 / math.tan(math.radians(fov_degrees) / 2))
    return F.normalize(torch.stack([x.expand_as(z), y.expand_as(z), z], dim=-1), dim=-1)


def rays_from(
    origins: Tensor, rotations: Tensor, shape: tuple[int, int], fov_degrees: float | Tensor
) -> Rays:
    """Return the rays of cameras anywhere, on the device and in the precision of origins.

    origins (B, 3) and rotations (B, 3, 3) from camera to world, columns [right, up, -forward];
    shape (H, W) in pixels; fov_degrees across the shorter side, one for all or (B,). Returns Rays
    of (B, H * W, 3), pixels in row-major order from the top left.
    """
    pixels = camera_directions(shape, fov_degrees, device=origins.device, dtype=origins.dtype)
    # Not a matrix product: autocast would round it to half precision.
    directions = (rotations[:, None] * pixels[..., None, :]).sum(-1)  # (B, R, 3)
    return Rays(origins[:, None].expand_as(directions), directions)


def cast_rays(
    poses: Poses,
    image_size: int,
    fov_degrees: float | Tensor,
    *,
    device: torch.device | None = None,
) -> Rays:
    """Return the rays of square images from cameras on the unit sphere that look at the origin.

    poses (B,) each; fov_degrees: full angle of view across the image, one for all or (B,). Returns
    Rays of (B, H * W, 3) as rays_from gives them, H = W = image_size.
    device: of the rays; None takes that of poses. Cameras are computed where their poses are.
    """
    shape = (image_size, image_size)
    device = device or poses.pitch.device
    origins = moved(camera_origins(poses), device)
    return rays_from(origins, moved(camera_rotations(poses), device), shape, fov_degrees)
