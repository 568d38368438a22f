"""Consistency figures on known scenes: exact ones score perfectly, inconsistent ones badly."""

import math
from dataclasses import replace

import pytest
import torch

from generators.cameras import Poses, cast_rays, project
from generators.generators import View
from generators.volumetric_rendering import Rendering, RenderOptions, render_rays
from metrics import consistency
from metrics.surfaces import sampled, surface, surface_points
from scenes.rendering import render_cars
from scenes.toy_car_images import toy_car_scenes

RADIUS = 0.2
OPTIONS = RenderOptions(
    image_size=64, fov_degrees=30, near=0.7, far=1.3, num_steps=48, background="white"
)
FRONT = Poses(torch.tensor([1.3]), torch.tensor([1.5]))
OFFSETS = (-0.5, -0.25, 0.25, 0.5)


def turned(by, pose=FRONT):
    return Poses(pose.pitch, pose.yaw + by)


def texture(points):
    """Return smooth colors (..., 3) in [0, 1] as a function of position."""
    return 0.5 + 0.4 * torch.sin(points * torch.tensor([12.0, 9.0, 15.0]) + points.roll(1, -1) * 7)


def sphere_view(poses):
    """Return a view of a textured sphere by its closed-form intersection with the rays."""
    size = OPTIONS.image_size
    rays = cast_rays(poses, size, OPTIONS.fov_degrees)
    closest = -(rays.origins * rays.directions).sum(-1)
    past = 1 - closest.square()
    hits = past < RADIUS**2
    depths = closest - (RADIUS**2 - past).clamp(min=0).sqrt()
    colors = texture(rays.origins + depths[..., None] * rays.directions)
    colors = torch.where(hits[..., None], colors, 1.0)
    return view_of(Rendering(colors, depths * hits, hits.float()), size)


def field_view(field, poses, options=OPTIONS):
    rays = cast_rays(poses, options.image_size, options.fov_degrees)
    return view_of(render_rays(field, rays, options, rng=None), options.image_size)


def view_of(rendering, size):
    rgb, depth, opacity = (part.unflatten(1, (size, size)) for part in rendering)
    return View(rgb.permute(0, 3, 1, 2) * 2 - 1, depth, opacity)


def per_point(points, directions):
    """Repeat directions for the points that share them, (B, P, 3)."""
    share = points.shape[1] // directions.shape[1]
    return directions.repeat_interleave(share, dim=1)


def solid(points):
    return 2000 * ((RADIUS - points.norm(dim=-1, keepdim=True)) * 50).clamp(-1, 1)


def textured_sphere(points, directions):
    return torch.cat([texture(points), solid(points)], dim=-1)


def painted_by_direction(points, directions):
    towards = per_point(points, directions)
    return torch.cat([0.5 + 0.5 * torch.sin(6 * towards + 20 * points), solid(points)], dim=-1)


def billboard(points, directions):
    """A picture on a board that always faces the camera."""
    towards = per_point(points, directions)
    right = torch.nn.functional.normalize(
        torch.linalg.cross(towards, torch.tensor([0.0, 1, 0]).expand_as(towards)), dim=-1
    )
    across, up = (points * right).sum(-1), points[..., 1]
    colors = 0.5 + 0.4 * torch.sin(torch.stack([60 * across, 60 * up, 40 * (across + up)], dim=-1))
    is_board = ((points * towards).sum(-1) > 0) & (across.abs() < 0.2) & (up.abs() < 0.2)
    return torch.cat([colors, 2000 * (2 * is_board[..., None].to(points) - 1)], dim=-1)


def compared(view_from, offset):
    here = surface(view_from(FRONT), FRONT, OPTIONS)
    there = surface(view_from(turned(offset)), turned(offset), OPTIONS)
    return consistency.compare(here, there)


@pytest.mark.parametrize("offset", OFFSETS)
def test_an_exact_textured_sphere_is_perfect_up_to_sampling(offset):
    figures = compared(sphere_view, offset)
    assert figures.psnr_db > 38  # colors between pixels are interpolated, nothing else
    assert figures.l1 < 0.008
    assert figures.depth_agreement > 99
    assert figures.depth_error < 1e-3
    assert figures.compared > 60  # the rest is now on the far side


def test_sampling_is_all_that_an_exact_scene_lacks(monkeypatch):
    coarse = compared(sphere_view, 0.25).psnr_db
    monkeypatch.setattr("test_consistency.OPTIONS", replace(OPTIONS, image_size=160))
    assert compared(sphere_view, 0.25).psnr_db > coarse + 8  # a second order error


def test_the_same_view_twice_agrees_exactly():
    figures = compared(sphere_view, 0.0)
    assert figures.psnr_db > 90
    assert figures.depth_agreement == 100
    assert figures.depth_error < 1e-6
    assert figures.compared > 85  # all but the pixels beside the outline


@pytest.mark.parametrize("offset", OFFSETS)
def test_exact_toy_cars_agree_though_they_hide_parts_of_themselves(offset):
    cars, _ = toy_car_scenes([3], seed=0)

    def view(poses):
        shown = render_cars(cars, poses, 128, OPTIONS.fov_degrees, supersampling=1)
        opacity = shown.depths.isfinite().float()
        return View(shown.images * 2 - 1, shown.depths.nan_to_num(posinf=0), opacity)

    figures = compared(view, offset)
    assert figures.depth_agreement > 97
    assert figures.l1 < 0.02  # window frames are narrower than a pixel
    assert figures.compared > 40


@pytest.mark.parametrize("offset", OFFSETS)
def test_a_volume_rendered_sphere_passes_and_a_billboard_fails(offset):
    honest = compared(lambda poses: field_view(textured_sphere, poses), offset)
    fake = compared(lambda poses: field_view(billboard, poses), offset)
    assert honest.psnr_db > 30
    assert honest.depth_agreement > 95
    assert fake.psnr_db < 20
    assert fake.depth_agreement < 60


def test_a_surface_in_empty_space_contradicts_and_is_not_taken_for_a_hidden_one():
    view = sphere_view(turned(0.25))
    nearer = View(view.images, view.depths - 0.05 * view.opacities, view.opacities)
    here = surface(sphere_view(FRONT), FRONT, OPTIONS)
    there = surface(nearer, turned(0.25), OPTIONS)
    figures = consistency.compare(here, there)
    assert figures.depth_agreement < 5
    assert figures.compared > 60
    torch.testing.assert_close(
        figures.depth_error, torch.tensor([0.06]).double(), atol=0.01, rtol=0
    )


def change(field, options=OPTIONS):
    here = surface(field_view(field, FRONT), FRONT, options)
    return consistency.color_change(field, here, OFFSETS, options, points_per_chunk=30_000)


def test_color_that_follows_the_viewing_direction_is_caught():
    assert change(textured_sphere).max() < 1e-6
    painted = change(painted_by_direction)
    assert painted.min() > 0.1
    assert painted[0] > painted[1]  # the farther the camera turns, the more
    assert painted[3] > painted[2]


def test_color_change_equals_that_of_a_known_field():
    def field(points, directions):
        towards = per_point(points, directions)
        return torch.cat([(0.5 + 0.1 * towards[..., :1]).expand_as(points), solid(points)], dim=-1)

    here = surface(field_view(field, FRONT), FRONT, OPTIONS)
    measured = consistency.color_change(field, here, [0.5], OPTIONS, points_per_chunk=10**6)
    points = surface_points(here)[here.is_clear]
    told = [
        torch.nn.functional.normalize(points - cast_rays(pose, 1, 1.0).origins[0], dim=-1)
        for pose in (FRONT, turned(0.5))
    ]
    expected = 0.1 * (told[0][:, 0] - told[1][:, 0]).abs().mean()
    torch.testing.assert_close(measured[0].float(), expected, rtol=1e-3, atol=0)


def test_a_locked_field_is_shown_one_direction_and_cannot_change():
    locked = replace(OPTIONS, lock_view_dependence=True)
    assert change(painted_by_direction, locked).tolist() == [0.0] * 4


def test_empty_space_has_no_figures():
    def empty(points, directions):
        return torch.cat([points, torch.full_like(points[..., :1], -1.0)], dim=-1)

    here = surface(field_view(empty, FRONT), FRONT, OPTIONS)
    assert change(empty).isnan().all()
    assert all(figure.isnan().all() for figure in consistency.compare(here, here))


def test_half_transparent_counts_what_lies_strictly_between():
    opacities = torch.tensor([[[0.0, 0.05], [0.5, 0.95]], [[0.2, 0.3], [0.4, 1.0]]])
    assert consistency.half_transparent(opacities).tolist() == [25.0, 75.0]


def test_islands_are_opaque_parts_that_touch_nothing_else():
    opacities = torch.zeros(4, 6, 6)
    opacities[:, 1:4, 1:4] = 0.9
    opacities[1, 5, 5] = 0.6
    opacities[2, 4, 4], opacities[3, 5, 5] = 0.6, 0.4  # touches a corner; fog
    assert consistency.has_islands(opacities).tolist() == [False, True, False, False]
    assert not consistency.has_islands(torch.zeros(1, 6, 6)).any()


def test_normals_of_neighbors_turn_as_the_surface_does():
    poses = Poses(FRONT.pitch.expand(2), FRONT.yaw + torch.tensor([0.0, 0.4]))
    here = surface(sphere_view(poses), poses, OPTIONS)
    radial = torch.nn.functional.normalize(surface_points(here), dim=-1)
    both = here.is_clear[:, 1:] & here.is_clear[:, :-1]
    cosines = (radial[:, 1:] * radial[:, :-1]).sum(-1)
    wanted = cosines.clamp(max=1).arccos().rad2deg()
    for found, turns, are_clear in zip(consistency.normal_angles(here), wanted, both, strict=True):
        assert found.item() == pytest.approx(turns[are_clear].median().item(), rel=0.1)
    wall = view_of(Rendering(torch.zeros(1, 400, 3), flat_depths(20), torch.ones(1, 400)), 20)
    options = replace(OPTIONS, image_size=20)
    assert consistency.normal_angles(surface(wall, FRONT, options)).item() < 0.1


def flat_depths(size):
    """Return depths (1, size * size) of a plane through the origin that faces the camera."""
    rays = cast_rays(FRONT, size, OPTIONS.fov_degrees)
    forward = -torch.nn.functional.normalize(rays.origins[:, :1], dim=-1)
    return 1 / (rays.directions * forward).sum(-1)


@pytest.mark.parametrize("share", [1.0, 0.005])  # solid; 3 of 4 parts of the light stopped
@pytest.mark.parametrize("air", [0.0, 1e-6])
def test_depth_of_a_surface_is_the_same_before_every_background(share, air):
    def field(points, directions):
        inside = share * solid(points) * (points.norm(dim=-1, keepdim=True) < RADIUS)
        return torch.cat([texture(points), inside + air], dim=-1)

    depths = {}
    for background in ("black", "white", "last_sample"):
        options = replace(OPTIONS, background=background)
        found = surface(field_view(field, FRONT, options), FRONT, options)
        assert 0.05 < found.is_clear.double().mean() < 0.5  # the sphere, never the background
        depths[background] = found.depths[found.is_clear]
    torch.testing.assert_close(depths["black"], depths["white"])
    torch.testing.assert_close(depths["black"], depths["last_sample"])


def test_projecting_a_pixel_s_own_point_gives_its_place_and_depth():
    here = surface(sphere_view(FRONT), FRONT, OPTIONS)
    places, distances = project(surface_points(here), FRONT, OPTIONS.fov_degrees)
    axis = torch.linspace(-1, 1, OPTIONS.image_size)
    torch.testing.assert_close(places[0, 0, :, 0], axis, atol=1e-5, rtol=0)
    torch.testing.assert_close(places[0, :, 0, 1], axis, atol=1e-5, rtol=0)
    torch.testing.assert_close(distances, here.depths)
    torch.testing.assert_close(sampled(here.colors, places), here.colors, atol=1e-4, rtol=0)


def test_points_behind_the_camera_are_not_in_the_picture():
    behind = 1.2 * cast_rays(FRONT, 1, 1.0).origins[:, None]
    places, _ = project(behind, FRONT, OPTIONS.fov_degrees)
    assert places.abs().min() > 1


def test_poses_are_wrapped_and_in_degrees():
    poses = Poses(torch.tensor([1.0, 1.0]), torch.tensor([3.1, 0.0]))
    guess = torch.tensor([[1.1, -3.1], [1.0, math.pi / 2]])
    errors = consistency.pose_errors(guess, poses)
    torch.testing.assert_close(
        errors.pitch, torch.tensor([math.degrees(0.1), 0.0]).double(), atol=1e-5, rtol=0
    )
    expected = torch.tensor([math.degrees(2 * math.pi - 6.2), 90.0]).double()
    torch.testing.assert_close(errors.yaw, expected, atol=1e-4, rtol=0)
