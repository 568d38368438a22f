"""Normals of surfaces whose normals are known."""

import math

import torch

from generators.cameras import Poses, camera_origins, camera_rotations, cast_rays
from generators.pictures import normal_pictures, surface_normals

RADIUS, SIZE = 0.2, 65


def sphere_points(pose):
    """Return the points (1, SIZE, SIZE, 3) at which rays hit a ball; NaN if they miss it."""
    rays = cast_rays(pose, SIZE, 30.0)
    middle = -(rays.origins * rays.directions).sum(-1)
    past = (rays.origins + middle[..., None] * rays.directions).square().sum(-1)
    depth = middle - (RADIUS**2 - past).sqrt()  # NaN outside
    return (rays.origins + depth[..., None] * rays.directions).view(1, SIZE, SIZE, 3)


def test_normals_of_a_ball_point_away_from_its_center():
    pose = Poses(torch.tensor([1.1], dtype=torch.float64), torch.tensor([0.7], dtype=torch.float64))
    points = sphere_points(pose)
    normals = surface_normals(points)
    cosine = (normals * points / RADIUS).sum(-1)
    center = points[0, SIZE // 2, SIZE // 2]
    facing = (points * center).sum(-1) / RADIUS**2 > 0.3  # not at the rim, where a pixel is long
    assert facing.sum() > 1000
    assert cosine[facing].min() > math.cos(math.radians(6))
    assert normals[points.isnan()].isnan().all()
    torch.testing.assert_close(camera_origins(pose)[0], center / RADIUS, atol=1e-6, rtol=0)


def test_a_wall_before_the_camera_is_blue_and_nothing_is_black():
    pose = Poses(torch.tensor([math.pi / 2]), torch.tensor([math.pi / 2]))  # looks along -z
    across, down = torch.meshgrid(torch.arange(4.0), torch.arange(3.0), indexing="xy")
    points = torch.stack([across, -down, torch.zeros_like(down)], dim=-1)[None]
    points[0, 0, 0] = torch.nan
    image = normal_pictures(surface_normals(points), camera_rotations(pose))
    assert image.shape == (1, 3, 3, 4)
    torch.testing.assert_close(image[0, :, 2, 3], torch.tensor([0.0, 0, 1]), atol=1e-6, rtol=0)
    assert image[0, :, 0, 0].tolist() == [-1, -1, -1]
    assert not image.isnan().any()


def test_the_rim_before_a_far_wall_keeps_its_normal():
    x = torch.arange(6.0)
    depth = torch.where(x < 3, 0.0, -50.0).expand(6, 6)  # a step of 50 between two flat parts
    points = torch.stack([x.expand(6, 6), -x[:, None].expand(6, 6), depth], dim=-1)[None]
    normals = surface_normals(points)
    torch.testing.assert_close(normals[0], torch.tensor([0.0, 0, 1]).expand(6, 6, 3))
