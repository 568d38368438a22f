"""Depth and normal pictures of surfaces that are known in closed form."""

import math
from dataclasses import replace

import pytest
import torch

from generators.cameras import Poses, camera_origins, camera_rotations, cast_rays
from generators.generators import View
from generators.pictures import depth_pictures, normal_pictures, surface_depths, surface_normals
from generators.volumetric_rendering import RenderOptions, render_rays

RADIUS, SIZE = 0.1, 17
OPTIONS = RenderOptions(
    image_size=SIZE, fov_degrees=15, near=0.8, far=1.2, num_steps=64, background="white"
)


def sphere(density, air):
    def field(points, directions):
        inside = points.norm(dim=-1, keepdim=True) < RADIUS
        return torch.cat([torch.full_like(points, 0.5), density * inside + air], dim=-1)

    return field


def seen(density, options, air=0.0):
    rays = cast_rays(Poses(torch.tensor([1.1]), torch.tensor([0.3])), SIZE, options.fov_degrees)
    rendering = render_rays(sphere(density, air), rays, options, rng=None)
    planes = (plane.view(1, SIZE, SIZE) for plane in (rendering.depth, rendering.opacity))
    return rays, View(torch.zeros(1, 3, SIZE, SIZE), *planes)


@pytest.mark.parametrize("background", ["white", "last_sample"])
@pytest.mark.parametrize("air", [0.0, 1e-6])  # a breath of it stops all light at the last sample
def test_depth_of_a_sphere_is_the_distance_to_it(background, air):
    options = replace(OPTIONS, background=background)
    rays, view = seen(1e5, options, air)
    depths = surface_depths(view, options).flatten()
    closest = -(rays.origins * rays.directions).sum(-1)[0]
    past = (rays.origins[0] + closest[:, None] * rays.directions[0]).norm(dim=-1)
    expected = closest - (RADIUS**2 - past**2).clamp(min=0).sqrt()
    well_inside, outside = past < 0.9 * RADIUS, past > RADIUS
    assert int(well_inside.sum()) > 50
    assert int(outside.sum()) > 50
    spacing = (options.far - options.near) / (options.num_steps - 1)
    torch.testing.assert_close(depths[well_inside], expected[well_inside], atol=spacing, rtol=0)
    assert depths[outside].isnan().all()


def test_half_transparent_matter_lies_where_it_is():
    """The raw depth of View shrinks with the opacity; the surface's must not."""
    density = math.log(4) / (2 * RADIUS)  # the ray through the center keeps a quarter of its light
    _, view = seen(density, OPTIONS)
    middle = SIZE // 2
    assert float(view.opacities[0, middle, middle]) == pytest.approx(0.75, abs=0.02)
    # The mean of an exponential that is cut at the far side of the sphere.
    inside = 1 / density - 2 * RADIUS * 0.25 / 0.75
    depth = float(surface_depths(view, OPTIONS)[0, middle, middle])
    assert depth == pytest.approx(1 - RADIUS + inside, abs=0.005)


def lightness(image):
    """Return the CIE lightness of a color (3,) in [-1, 1], independently of the code tested."""
    share = (image.double() + 1) / 2
    linear = torch.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    luminance = float((linear * torch.tensor([0.2126, 0.7152, 0.0722]).double()).sum())
    return 116 * luminance ** (1 / 3) - 16


def test_lightness_falls_evenly_from_near_to_far():
    depths = torch.linspace(OPTIONS.near, OPTIONS.far, 65).view(1, 1, -1)
    colors = depth_pictures(depths, OPTIONS)[0, :, 0]
    assert ((colors > -1) & (colors < 1)).all()  # every color exists, none is cut
    levels = torch.tensor([lightness(color) for color in colors.T])
    steps = levels.diff()
    assert (steps < 0).all()
    assert float(steps.min() / steps.max()) < 2
    assert float(levels[0] - levels[-1]) > 50


def test_the_color_scale_does_not_depend_on_the_picture():
    one = depth_pictures(torch.tensor([[[0.9, 1.0]]]), OPTIONS)
    other = depth_pictures(torch.tensor([[[0.9, 0.91]]]), OPTIONS)
    assert torch.equal(one[..., 0], other[..., 0])
    beyond = depth_pictures(torch.tensor([[[0.1, 0.8, 5.0, 1.2, math.nan]]]), OPTIONS)[0, :, 0]
    assert torch.equal(beyond[:, 0], beyond[:, 1])
    assert torch.equal(beyond[:, 2], beyond[:, 3])
    assert (beyond[:, 4] == -1).all()


def test_normals_of_a_ball_point_away_from_its_center():
    pose = Poses(torch.tensor([1.1], dtype=torch.float64), torch.tensor([0.7], dtype=torch.float64))
    radius, size = 0.2, 65
    rays = cast_rays(pose, size, 30.0)
    middle = -(rays.origins * rays.directions).sum(-1)
    past = (rays.origins + middle[..., None] * rays.directions).square().sum(-1)
    depth = middle - (radius**2 - past).sqrt()  # NaN where rays miss the ball
    points = (rays.origins + depth[..., None] * rays.directions).view(1, size, size, 3)
    normals = surface_normals(points)
    cosine = (normals * points / radius).sum(-1)
    center = points[0, size // 2, size // 2]
    facing = (points * center).sum(-1) / radius**2 > 0.3  # not at the rim, where a pixel is long
    assert facing.sum() > 1000
    assert cosine[facing].min() > math.cos(math.radians(6))
    assert normals[points.isnan()].isnan().all()
    torch.testing.assert_close(camera_origins(pose)[0], center / radius, atol=1e-6, rtol=0)


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
