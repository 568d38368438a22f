"""The rendering integral against closed forms, and the contract of its random stream."""

import math
from dataclasses import replace

import pytest
import torch
from published_render import render as published_render
from torch.nn import functional as F

from generators.cameras import Poses, cast_rays
from generators.fields import chunked
from generators.volumetric_rendering import (
    RenderOptions,
    composite,
    compositing_weights,
    depth_range,
    fine_quantiles,
    importance_depths,
    rays_that_hit,
    render_rays,
    spread_weights,
    stratified_depths,
    surface_bins,
)
from siren.surface import Surface


def options(**changes):
    numbers = {"image_size": 4, "fov_degrees": 12.0, "near": 0.8, "far": 1.2, "num_steps": 8}
    return RenderOptions(**{**numbers, **changes})


def rays_of(size=4, dtype=torch.float64, count=2):
    pitch = torch.full((count,), 1.3, dtype=dtype)
    return cast_rays(Poses(pitch, torch.linspace(0, 2, count, dtype=dtype)), size, 12.0)


def constant_field(density, color=(0.2, 0.4, 0.6)):
    def field(points, directions):
        value = points.new_tensor([*color, density])
        return value.expand(*points.shape[:2], 4)

    return field


def solid_ball(radius, density=4000.0):
    def field(points, directions):
        inside = (points.norm(dim=-1, keepdim=True) < radius).to(points)
        return torch.cat([torch.full_like(points, 0.25), density * inside], dim=-1)

    return field


def bumpy_field(points, directions):
    density = 40 * torch.sin(9 * points[..., :1] + 4 * points[..., 1:2]) + 5
    share = points.shape[1] // directions.shape[1]
    seen = directions.repeat_interleave(share, dim=1)
    return torch.cat([torch.sigmoid(3 * points + seen), density], dim=-1)


@pytest.mark.parametrize("density", [0.0, 1e-6, 0.5, 40.0, 1e8])
def test_constant_density_fades_geometrically(density):
    depths = torch.linspace(0, 1, 9, dtype=torch.float64)  # eight steps of 1/8, then the tail
    weights = compositing_weights(torch.full_like(depths, density), depths)
    survive = math.exp(-density / 8)
    expected = torch.tensor([survive**i * (1 - survive) for i in range(8)], dtype=torch.float64)
    torch.testing.assert_close(weights[:-1], expected)
    assert weights.sum() == pytest.approx(0 if density == 0 else 1)


def test_equals_the_published_running_product():
    torch.manual_seed(0)
    density = F.relu(torch.randn(50, 24) * 30)
    depths = torch.sort(torch.rand(50, 24) * 0.24 + 0.88).values
    deltas = torch.cat([depths.diff(dim=-1), torch.full((50, 1), 1e10)], -1)
    alphas = 1 - torch.exp(-deltas * density)
    shifted = torch.cat([torch.ones(50, 1), 1 - alphas + 1e-10], -1)
    published = alphas * torch.cumprod(shifted, -1)[:, :-1]
    torch.testing.assert_close(compositing_weights(density, depths), published, atol=1e-6, rtol=0)


@pytest.mark.parametrize("scale", [0.0, 1e-12, 1.0, 1e6, 1e20])
def test_weights_and_gradients_stay_finite(scale):
    generator = torch.Generator().manual_seed(1)
    density = (torch.rand(5, 12, generator=generator) * scale).requires_grad_()
    weights = compositing_weights(density, torch.linspace(0.88, 1.12, 12).expand(5, -1))
    (gradient,) = torch.autograd.grad(weights.square().sum(), density)
    assert weights.isfinite().all()
    assert gradient.isfinite().all()


def test_importance_depths_are_quantiles_of_the_piecewise_cdf():
    depths = torch.linspace(0, 1, 5, dtype=torch.float64)[None, None]  # edges at 1/8, 3/8, 5/8, 7/8
    # The weights at the ends do not count.
    weights = torch.tensor([[[9.0, 1.0, 2.0, 1.0, 9.0]]], dtype=torch.float64)
    found = importance_depths(depths, weights, 4, quantiles=None)
    # Mass 1/4, 1/2, 1/4 in bins of width 1/4; quantiles 1/8, 3/8, 5/8, 7/8.
    expected = torch.tensor([[[0.25, 0.4375, 0.5625, 0.75]]], dtype=torch.float64)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_importance_samples_follow_the_weights():
    depths = torch.linspace(0, 1, 7, dtype=torch.float64).expand(1, 1, 7)
    weights = torch.tensor([0.0, 3.0, 0.0, 1.0, 4.0, 2.0, 0.0], dtype=torch.float64)[None, None]
    quantiles = torch.rand(1, 1, 100_000, generator=torch.Generator().manual_seed(3))
    found = importance_depths(depths, weights, 100_000, quantiles=quantiles.double())[0, 0]
    edges = torch.linspace(1 / 12, 11 / 12, 6, dtype=torch.float64)
    share = torch.histogram(found, edges).hist / len(found)
    expected = torch.tensor([0.3, 0.0, 0.1, 0.4, 0.2], dtype=torch.float64)
    torch.testing.assert_close(share, expected, atol=0.005, rtol=0)


@pytest.mark.parametrize("shares_jitter", [True, False])
@pytest.mark.parametrize("radius", [None, 0.15])
def test_shared_jitter_puts_one_sample_into_each_stretch_as_long_as_the_spacing(
    radius, shares_jitter
):
    opts = options(shares_jitter=shares_jitter, scene_radius=radius, background="white")
    rays = rays_of(size=32)
    depths = stratified_depths(rays, opts, rng=torch.Generator().manual_seed(2))
    near, far = depth_range(rays, opts)
    spacing = (far - near) / (7 if radius is None else 8)
    start = near + 2.3 * spacing  # anywhere
    is_inside = (depths >= start[..., None]) & (depths < (start + spacing)[..., None])
    counts = is_inside.sum(-1)[far > near].double()
    assert counts.mean() == pytest.approx(1, abs=0.03)  # without bias in either case
    assert (counts == 1).all() == shares_jitter


def test_shared_jitter_keeps_quantiles_evenly_spaced_and_uniform():
    like, rng = torch.empty(4, 1000, 3, dtype=torch.float64), torch.Generator().manual_seed(4)
    quantiles = fine_quantiles(like, 5, options(shares_jitter=True), rng=rng)
    torch.testing.assert_close(quantiles.diff(dim=-1), torch.full((4, 1000, 4), 0.2).double())
    first = quantiles[..., 0].flatten()
    assert 0 <= first.min() < 0.001 < 0.199 < first.max() < 0.2
    assert first.std() == pytest.approx(0.2 / math.sqrt(12), rel=0.02)
    assert quantiles.max() < 1


def test_spread_weights_reach_the_bin_before_and_half_of_the_one_behind():
    weights = torch.tensor([0.0, 0.0, 4.0, 0.0, 0.0, 2.0])
    expected = torch.tensor([0.0, 4.0, 4.0, 2.0, 2.0, 2.0])
    torch.testing.assert_close(spread_weights(weights), expected, atol=0, rtol=0)


@pytest.mark.parametrize(("spreads", "most"), [(True, 1 / (0.4 * 8)), (False, 1 / 2 + 1 / 16)])
def test_spread_weights_find_a_surface_between_two_samples(spreads, most):
    """An opaque half-space; errors in units of the coarse spacing.

    Of 8 fine samples, spread weights put 0.4 into each of two bins, which hold the surface; without
    them all are in one bin, which begins half-way, the first one after a sixteenth of it.
    """
    spacing, rays = 0.4 / 7, rays_of(size=1, count=1)
    errors = []
    for distance in torch.linspace(0.95, 1.05, 60, dtype=torch.float64):

        def wall(points, directions, distance=distance):
            is_inside = (points - rays.origins).norm(dim=-1, keepdim=True) > distance
            return torch.cat([torch.zeros_like(points), 1e7 * is_inside], dim=-1)

        seen = render_rays(wall, rays, options(spreads_weights=spreads), rng=None)
        errors.append((seen.depth.item() - distance.item()) / spacing)
    assert -0.01 < min(errors)
    assert max(errors) == pytest.approx(most, abs=0.03)


def test_bins_of_surfaces_are_those_of_twice_as_many_samples():
    """Along a ray that meets planes the distance is linear, so half-way it is known exactly."""
    surface, depths = Surface(0.005, 0.0), torch.linspace(0.8, 1.2, 9, dtype=torch.float64)
    finer = torch.linspace(0.8, 1.2, 17, dtype=torch.float64)
    for plane, slope in ((0.93, 1.0), (1.07, 0.6), (1.0, -0.8)):  # the last one: seen from inside

        def density(at, plane=plane, slope=slope):
            return surface.densities_at(slope * (at - plane))

        edges, weights = surface_bins(density(depths)[None, None], depths[None, None], 0.005)
        torch.testing.assert_close(edges[0, 0], finer)
        known = density(finer).clamp(min=0)
        absorbed = torch.cumulative_trapezoid(known, finer)
        light = torch.exp(-torch.cat([torch.zeros(1).double(), absorbed]))
        own = torch.cat([torch.zeros(1).double(), -light.diff(), torch.zeros(1).double()])
        wanted = (own[:-2] + own[1:-1] + own[2:]) / 3
        # Far from the surface a density tells the distance no more, and is next to nothing.
        torch.testing.assert_close(weights[0, 0], wanted, rtol=1e-4, atol=3e-5)


def test_bins_of_surfaces_find_a_sharp_ball_better_than_spread_weights():
    surface = Surface(0.005, 0.0)

    def ball(points, directions):
        density = surface.densities_at(2 * (0.125 - points.norm(dim=-1)))
        return torch.cat([4 * points + 0.5, density[..., None]], dim=-1)

    chosen = options(spreads_weights=True, scene_radius=0.27, num_steps=7)
    rays, errors = rays_of(size=12, count=1), {}
    exact = render_rays(ball, rays, replace(chosen, num_steps=400), rng=None)
    for width in (None, 0.005):
        seen = render_rays(ball, rays, replace(chosen, surface_width=width), rng=None)
        errors[width] = [(a - b).abs().mean() for a, b in zip(seen, exact, strict=True)]
    assert all(
        ours < 0.6 * spread for ours, spread in zip(errors[0.005], errors[None], strict=True)
    )


def test_without_a_stream_depths_are_the_even_ones_and_with_one_they_stay_in_their_cells():
    rays = rays_of()
    even = stratified_depths(rays, options(), rng=None)
    torch.testing.assert_close(even[0, 0], torch.linspace(0.8, 1.2, 8, dtype=torch.float64))
    rng = torch.Generator().manual_seed(0)
    jittered = stratified_depths(rays, options(), rng=rng)
    half = 0.4 / 7 / 2
    assert (jittered - even).abs().max() <= half
    assert (jittered - even).abs().max() > 0.8 * half
    assert (jittered.diff(dim=-1) >= 0).all()


@pytest.mark.parametrize("background", ["black", "white", "last_sample"])
def test_backgrounds_of_a_half_transparent_slab(background):
    # Density only at the first of three samples: opacity 1/2, the rest reaches the background.
    depths = torch.tensor([[[1.0, 2.0, 3.0]]], dtype=torch.float64)
    samples = torch.tensor(
        [[[[0.2, 0.4, 0.6, math.log(2)], [1, 0, 0, 0], [0.8, 0.8, 0.0, -5]]]], dtype=torch.float64
    )
    result = composite(samples, depths, options(background=background), rng=None)
    rest = {"black": [0.0, 0, 0], "white": [1.0, 1, 1], "last_sample": [0.8, 0.8, 0.0]}[background]
    expected = 0.5 * torch.tensor([0.2, 0.4, 0.6]) + 0.5 * torch.tensor(rest)
    torch.testing.assert_close(result.rgb[0, 0], expected.double())
    assert result.opacity.item() == pytest.approx(0.5)
    depth = 0.5 * 1.0 + (0.5 * 3.0 if background == "last_sample" else 0)
    assert result.depth.item() == pytest.approx(depth)


def test_softplus_gives_the_rest_of_the_light_to_the_last_sample():
    samples = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    samples[..., 3] = -3.0
    depths = torch.linspace(0.8, 1.2, 4, dtype=torch.float64)[None, None]
    result = composite(samples, depths, options(density_activation="softplus"), rng=None)
    assert result.opacity.item() == pytest.approx(1)
    assert composite(samples, depths, options(), rng=None).opacity.item() == 0


def test_a_solid_ball_is_seen_where_it_is():
    sharp = options(image_size=33, fov_degrees=30.0, num_steps=64)
    pose = Poses(*(torch.tensor([angle], dtype=torch.float64) for angle in (1.2, 0.4)))
    rays = cast_rays(pose, 33, 30.0)
    result = render_rays(solid_ball(0.1, 1e4), rays, sharp, rng=None)
    center = 33 * 33 // 2
    assert result.depth[0, center].item() == pytest.approx(0.9, abs=0.4 / 63)
    # Its rim is at asin(0.1) off the axis; a pixel's angle is from its place in the image plane.
    across = torch.linspace(-1, 1, 33, dtype=torch.float64) * math.tan(math.radians(15))
    seen = result.opacity[0].view(33, 33)[16] > 0.5
    assert seen.tolist() == (across.abs().atan() < math.asin(0.1)).tolist()


@pytest.mark.parametrize(
    "changes",
    [{}, {"scene_radius": 0.09}, {"scene_radius": 0.09, "lock_view_dependence": True}],
)
def test_chunks_give_the_same_picture(changes):
    rays, opts = rays_of(size=5), options(image_size=5, **changes)
    whole = render_rays(bumpy_field, rays, opts, rng=None)
    for size in (1, 7, 37, 10_000):
        parts = render_rays(chunked(bumpy_field, size), rays, opts, rng=None)
        exactly = {} if changes else {"atol": 0, "rtol": 0}
        for a, b in zip(whole, parts, strict=True):
            torch.testing.assert_close(a, b, **exactly)


@pytest.mark.parametrize("hierarchical", [True, False])
def test_chunks_bound_the_points_of_a_call(hierarchical):
    seen = []

    def field(points, directions):
        seen.append(points.shape[0] * points.shape[1])
        return bumpy_field(points, directions)

    wanted = options(image_size=6, hierarchical=hierarchical)
    render_rays(chunked(field, 64), rays_of(size=6), wanted, rng=None)
    assert max(seen) <= 64
    assert sum(seen) == (1 + hierarchical) * 2 * 36 * 8  # two images, coarse and fine


def test_view_lock_shows_the_field_one_direction():
    seen = []

    def field(points, directions):
        seen.append(directions)
        return bumpy_field(points, directions)

    render_rays(field, rays_of(), options(lock_view_dependence=True), rng=None)
    for directions in seen:
        assert directions.shape[1] == 1
        assert (directions == torch.tensor([0.0, 0.0, -1.0], dtype=torch.float64)).all()


def test_the_stream_is_drawn_in_the_published_order():
    """A second, plain implementation that draws as published gives the same picture."""
    rays, opts = rays_of(dtype=torch.float32), options(density_noise=0.5, background="white")
    ours = render_rays(bumpy_field, rays, opts, rng=torch.Generator().manual_seed(5))
    torch.manual_seed(5)
    images, _ = published_render(
        lambda points, frequencies, phases, directions: bumpy_field(points, directions),
        torch.zeros(2, 0), None, torch.full((2,), 1.3), torch.linspace(0, 2, 2), size=4, steps=8,
        fov=12.0, near=0.8, far=1.2, hierarchical=True, std=0.5, clamp="relu", last_back=False,
        white_back=True)  # fmt: skip
    found = 2 * ours.rgb.view(2, 4, 4, 3).permute(0, 3, 1, 2) - 1
    torch.testing.assert_close(found, images, atol=2e-5, rtol=0)


def test_noise_is_drawn_even_at_deviation_zero():
    first, second = (torch.Generator().manual_seed(9) for _ in range(2))
    render_rays(bumpy_field, rays_of(), options(), rng=first)
    render_rays(bumpy_field, rays_of(), options(density_noise=1.0), rng=second)
    assert torch.equal(first.get_state(), second.get_state())


@pytest.mark.parametrize(
    "changes",
    [
        {"near": 1.3},
        {"num_steps": 2},
        {"fov_degrees": 180.0},
        {"image_size": 0},
        {"scene_radius": 0.0},
        {"scene_radius": 1.0},
        {"scene_radius": 0.1, "background": "last_sample"},
    ],
)
def test_impossible_options_are_refused(changes):
    with pytest.raises(ValueError, match="need"):
        options(**changes)


def test_a_bounded_scene_is_sampled_where_rays_are_in_the_ball():
    rays = rays_of(9)
    bounded = options(scene_radius=0.1)
    near, far = depth_range(rays, bounded)
    ends = rays.origins[..., None, :] + rays.directions[..., None, :] * torch.stack(
        [near, far], dim=-1
    ).unsqueeze(-1)
    meets = far > near
    assert 0 < meets.sum() < meets.numel()
    expected = torch.full_like(ends[meets][..., 0], 0.1)
    torch.testing.assert_close(ends[meets].norm(dim=-1), expected)
    depths = stratified_depths(rays, bounded, rng=None)
    even = depths.diff(dim=-1)
    torch.testing.assert_close(even, ((far - near) / 8)[..., None].expand_as(even))
    torch.testing.assert_close(depths.mean(-1), (near + far) / 2)
    jittered = stratified_depths(rays, bounded, rng=torch.Generator().manual_seed(0))
    assert ((jittered >= near[..., None]) & (jittered <= far[..., None])).all()
    near, far = depth_range(rays, options(scene_radius=0.9))  # larger than the usual range
    assert ((near == 0.8) & (far == 1.2)).all()


def test_a_ball_is_the_same_picture_in_a_bounded_scene():
    rays = rays_of(16)
    free, bounded = (
        render_rays(solid_ball(0.06), rays, options(num_steps=200, scene_radius=radius), rng=None)
        for radius in (None, 0.09)
    )
    torch.testing.assert_close(bounded.opacity, free.opacity, atol=1e-6, rtol=0)
    torch.testing.assert_close(bounded.rgb, free.rgb, atol=1e-6, rtol=0)
    torch.testing.assert_close(bounded.depth, free.depth, atol=2e-3, rtol=0)


@pytest.mark.parametrize(("background", "color"), [("black", 0.0), ("white", 1.0)])
def test_outside_the_ball_is_background_whatever_the_field_says(background, color):
    rays = rays_of(9)
    bounded = options(scene_radius=0.05, background=background)
    rendering = render_rays(constant_field(1e6), rays, bounded, rng=None)
    near, far = depth_range(rays, bounded)
    misses = far <= near
    assert misses.any()
    assert (rendering.rgb[misses] == color).all()
    assert (rendering.opacity[misses] == 0).all()
    hit = rendering.opacity[~misses]
    torch.testing.assert_close(hit, torch.ones_like(hit))


def test_a_thin_haze_does_not_become_a_wall_at_the_end_of_a_bounded_scene():
    rays = rays_of(3)
    haze = constant_field(0.5)
    assert (render_rays(haze, rays, options(), rng=None).opacity > 0.999).all()
    bounded = options(scene_radius=0.1, num_steps=64, hierarchical=False)
    opacity = render_rays(haze, rays, bounded, rng=None).opacity[:, 4]  # through the middle
    # One half of the first spacing lies before the first sample.
    expected = 1 - math.exp(-0.5 * 0.2 * (1 - 0.5 / 64))
    torch.testing.assert_close(opacity, torch.full_like(opacity, expected))


@pytest.mark.parametrize("size", [5, 16])
def test_the_rays_that_hit_are_the_same_for_every_camera(size):
    bounded = options(image_size=size, scene_radius=0.07)
    rays = rays_of(size)
    hits = rays_that_hit(bounded)
    assert 0 < len(hits) < size**2
    found = render_rays(bumpy_field, rays, bounded, rng=None)
    known = render_rays(bumpy_field, rays, bounded, rng=None, hits=hits)
    for one, other in zip(found, known, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_gradients_reach_a_bounded_scene():
    rays = rays_of(6)
    color = torch.full((3,), 0.3, dtype=torch.float64, requires_grad=True)

    def field(points, directions):
        return torch.cat([color.expand_as(points), torch.full_like(points[..., :1], 9.0)], dim=-1)

    rendering = render_rays(field, rays, options(scene_radius=0.05), rng=None)
    rendering.rgb.sum().backward()
    torch.testing.assert_close(color.grad, rendering.opacity.sum().expand(3).detach())
